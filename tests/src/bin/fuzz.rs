//! `cargo xtask fuzz` runs this: libFuzzer, which has the main function, feeds the target that `LB_FUZZ_TARGET` names. What fails is
//! made short and told; then the process ends.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use std::cell::RefCell;
use std::sync::OnceLock;
use tests::dice::Dice;
use tests::fuzz::{Check, SEEN, Shape, Target, corpus, failure, target};

/// The library takes these as coverage: what the programs in the kernel did, which no instrumented code shows. The linker tells it where
/// the section begins and ends.
#[used]
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static mut COUNTERS: [u8; SEEN] = [0; SEEN];

/// The target, and what it is fed to: by one thread alone.
fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("LB_FUZZ_TARGET").unwrap_or_default();
        target(&name).unwrap_or_else(|| {
            stop(&format!("LB_FUZZ_TARGET is {name:?}, which is no target: cargo xtask fuzz --list"))
        })
    })
}

thread_local! {
    static CHECK: RefCell<Option<Box<dyn Check>>> = const { RefCell::new(None) };
}

fn stop(why: &str) -> ! {
    eprintln!("{why}");
    std::process::abort()
}

fuzz_target!(|input: &[u8]| {
    CHECK.with_borrow_mut(|check| {
        let check = check.get_or_insert_with(|| {
            // That of the library ends the process, so that nothing could be made shorter.
            drop(std::panic::take_hook());
            (chosen().start)().unwrap_or_else(|error| stop(&format!("{error:#}")))
        });
        if let Some(why) = failure(&mut **check, input) {
            // Each try would tell of its panic.
            std::panic::set_hook(Box::new(|_| {}));
            match corpus::report(chosen(), &mut **check, input, &why) {
                Ok(told) => stop(&told),
                Err(error) => stop(&format!("{why}\nand it cannot be kept: {error:#}")),
            }
        }
        for seen in check.seen() {
            // SAFETY: this thread alone writes them while an input is fed, and the library reads them afterwards.
            unsafe { (&raw mut COUNTERS).cast::<u8>().add(usize::from(*seen) % SEEN).write(1) };
        }
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, room: usize, seed: u32| {
    let mut dice = Dice::new(seed.into());
    // The library's mutations know what was compared, ours what inputs are made of.
    if chosen().shape == Shape::Bytes && dice.percent(50) {
        return fuzzer_mutate(data, size, room);
    }
    let made = chosen().mutate(&mut dice, &data[..size], &data[..size]);
    // What has no room would end within a line.
    if made.len() > room {
        return size;
    }
    data[..made.len()].copy_from_slice(&made);
    made.len()
});
