//! What the packet tests and the whole-system tests are made of: frames, a runner for single programs, and a network of
//! namespaces with a balancer in the middle.
//!
//! Namespaces have no names: they live as long as a descriptor of the test process (or a child of it that dies with
//! its parent), so nothing is left behind by a panic, Ctrl-C or `kill -9`.

pub mod balancer;
pub mod bench;
mod blank;
#[cfg(test)]
mod bounds;
pub mod browser;
pub mod certificates;
pub mod client;
pub mod daemon;
pub mod delay;
pub mod dice;
pub mod frame;
pub mod fuzz;
pub mod greeter;
pub mod hello;
pub mod history;
pub mod learned;
pub mod load;
pub mod maps;
pub mod netns;
pub mod nginx;
pub mod object;
pub mod quic;
pub mod raw;
pub mod real;
pub mod redis;
pub mod runner;
pub mod scene;
pub mod server;
pub mod session_bench;
pub mod setup;
pub mod share;
pub mod shop;
pub mod table;
pub mod testbed;
pub mod topology;
pub mod torture;
pub mod visitor;
pub mod whole;
pub mod world;

/// Whether this is a machine whose instructions are translated: what depends on how soon something happens does not hold there.
pub fn is_slow() -> bool {
    std::env::var_os("LB_EMULATED").is_some()
}

/// # Panics
/// When not run as root: such a test must fail, not be skipped.
pub fn require_root() {
    // SAFETY: takes no argument and cannot fail.
    let uid = unsafe { libc::geteuid() };
    assert!(uid == 0, "this test loads BPF programs and creates network namespaces: run it as root");
}

/// The examples of docs/quic.md compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/quic.md")]
struct Quic;
