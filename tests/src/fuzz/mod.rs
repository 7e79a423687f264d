//! What the fuzzer feeds: every parser, and the loaded programs. Each target takes bytes and checks what must be true of any.
//!
//! The same targets are run in two ways. `cargo test -p tests --test fuzz` feeds the kept inputs (`tests/corpus/TARGET/`) and some
//! thousand mutations of them; `cargo xtask fuzz` feeds libFuzzer's, which coverage guides. docs/fuzzing.md tells the use.

pub mod corpus;
pub mod mutate;
pub mod parsers;
pub mod programs;
pub mod shorten;

use crate::dice::Dice;
use anyhow::Result;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Longest input, in bytes.
pub const MAX_INPUT: usize = 4096;

/// Places of [`Check::seen`].
pub const SEEN: usize = 1 << 14;

/// What is fed.
pub trait Check {
    /// Feeds an input.
    ///
    /// # Errors
    /// What is not true of it. A panic counts as that, too.
    fn check(&mut self, input: &[u8]) -> Result<()>;

    /// Beside what coverage tells: numbers below [`SEEN`] of what the last input made happen.
    fn seen(&self) -> &[u16] {
        &[]
    }
}

impl<F: FnMut(&[u8]) -> Result<()>> Check for F {
    fn check(&mut self, input: &[u8]) -> Result<()> {
        self(input)
    }
}

/// What inputs of a target consist of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    Bytes,
    /// Steps of a [`programs::sequence`], one a line.
    Steps,
}

/// Something that takes bytes from elsewhere.
pub struct Target {
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    pub shape: Shape,
    /// Mutations that the short form feeds.
    pub rounds: u32,
    /// What inputs are made of.
    pub words: &'static [&'static str],
    pub start: fn() -> Result<Box<dyn Check>>,
}

/// All of them.
pub fn targets() -> Vec<Target> {
    parsers::TARGETS.iter().chain(programs::TARGETS).map(Target::copy).collect()
}

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    targets().into_iter().find(|target| target.name == name)
}

impl Target {
    const fn copy(&self) -> Self {
        Self { ..*self }
    }

    /// Another input, made of one or two.
    pub fn mutate(&self, dice: &mut Dice, input: &[u8], other: &[u8]) -> Vec<u8> {
        match self.shape {
            Shape::Bytes => mutate::bytes(dice, input, other, self.words),
            Shape::Steps => programs::mutate(dice, input, other),
        }
    }
}

/// Feeds an input; why it fails, if it does.
pub fn failure(check: &mut dyn Check, input: &[u8]) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| check.check(input))) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(panic) => Some(format!("panicked: {}", said(&*panic))),
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
