//! What processors do to one entry at the same time. The sources are those of the programs (`lb-ebpf/src`); in the place of atomic
//! instructions and maps stand ones before each step of which a scheduler chooses who goes on (the crate shuttle): by chance, and by
//! few changes of who goes on first (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs").
//!
//! `LB_RACES_ROUNDS=N` plays each test N times in both ways. Orders of memory that no order of steps explains are not looked for.

mod atomic;
mod learned;
mod maps;
mod stashes;
mod table;

#[path = "../../../lb-ebpf/src/bounds.rs"]
#[expect(dead_code, reason = "lengths and offsets are those of packets")]
mod bounds;
#[path = "../../../lb-ebpf/src/flows.rs"]
#[expect(dead_code, reason = "all clients are proven here")]
mod flows;
#[path = "../../../lb-ebpf/src/homes.rs"]
#[expect(dead_code, reason = "what is noted of a flow's requests has one writer")]
mod homes;
#[path = "../../../lb-ebpf/src/shares.rs"]
#[expect(dead_code, reason = "what is chosen by the counts is not tested here")]
mod shares;
#[path = "../../../lb-ebpf/src/stash.rs"]
#[expect(dead_code, reason = "what is looked for in a stash is not tested here")]
mod stash;

/// Time, which stands still.
mod clock {
    use lb_common::settings::Settings;

    /// The present tick.
    pub(crate) const NOW: u32 = 1000;

    pub(crate) fn now(_: &Settings) -> u32 {
        NOW
    }

    pub(crate) fn second() -> u64 {
        NOW.into()
    }
}

use lb_common::settings::Settings;
use shuttle::thread;
use std::sync::Mutex;

/// One test at a time: they share the maps.
static ALONE: Mutex<()> = Mutex::new(());

/// Rounds of each kind unless `LB_RACES_ROUNDS` says another number.
const ROUNDS: usize = 400;
/// How often another thread goes on first, in rounds of the second kind.
const CHANGES: usize = 3;

/// Plays a test in many orders.
fn explore(test: impl Fn() + Send + Sync + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let rounds = match std::env::var("LB_RACES_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("LB_RACES_ROUNDS is a number"),
        Err(_) => ROUNDS,
    };
    let test = std::sync::Arc::new(test);
    let again = test.clone();
    shuttle::check_random(move || test(), rounds);
    shuttle::check_pct(move || again(), rounds, CHANGES);
}

/// Runs threads to their ends.
fn together(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = threads.into_iter().map(thread::spawn).collect();
    for thread in threads {
        thread.join().expect("a thread panics only with its test");
    }
}

/// Settings under which everything lives for 100 ticks, and one group is all there is.
fn settings() -> Settings {
    Settings {
        idle_ticks: 100,
        datagram_idle_ticks: 100,
        closing_ticks: 100,
        binding_ticks: 100,
        opening_ticks: 100,
        half_closed_ticks: 100,
        head_ticks: 100,
        evictable_ticks: 1000,
        ..Settings::default()
    }
}
