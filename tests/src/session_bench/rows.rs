//! The rows of the table: what is measured, and what should come of it.

use super::Bench;
use super::ours::Read;
use super::stint::Sample;
use anyhow::Result;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Reads under way at once in process.
const READERS: usize = 64;
/// Connections over HTTP.
const CONNECTIONS: usize = 32;
/// Writers that share a disk.
pub(super) const WRITERS: usize = 64;

/// Whose sessions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Sled,
    Redis,
    /// The application with `tower-sessions`.
    Usual,
}

/// How it is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    InProcess(Read),
    Http(Read),
    /// By so many writers.
    Write(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    whose: Whose,
    how: How,
}

const fn row(whose: Whose, how: How) -> Row {
    Row { whose, how }
}

impl Row {
    pub(super) const ALL: [Self; 15] = [
        row(Whose::Sled, How::InProcess(Read::Hit)),
        row(Whose::Sled, How::InProcess(Read::Reload)),
        row(Whose::Sled, How::InProcess(Read::TakeOver)),
        row(Whose::Redis, How::InProcess(Read::Hit)),
        row(Whose::Redis, How::InProcess(Read::Reload)),
        row(Whose::Redis, How::InProcess(Read::TakeOver)),
        row(Whose::Usual, How::InProcess(Read::Reload)),
        row(Whose::Sled, How::Http(Read::Hit)),
        row(Whose::Sled, How::Http(Read::Reload)),
        row(Whose::Redis, How::Http(Read::Reload)),
        row(Whose::Usual, How::Http(Read::Reload)),
        row(Whose::Sled, How::Write(1)),
        row(Whose::Sled, How::Write(WRITERS)),
        row(Whose::Redis, How::Write(1)),
        row(Whose::Redis, How::Write(WRITERS)),
    ];

    pub(super) fn name(self) -> String {
        let whose = match self.whose {
            Whose::Sled => "sled",
            Whose::Redis => "Redis",
            Whose::Usual => return "axum, tower-sessions, Redis".into(),
        };
        match self.how {
            How::InProcess(Read::Hit) | How::Http(Read::Hit) => format!("cache hit, {whose} behind"),
            How::InProcess(Read::Reload) | How::Http(Read::Reload) => format!("reload from {whose}"),
            How::InProcess(Read::TakeOver) | How::Http(Read::TakeOver) => format!("taken over, {whose}"),
            How::Write(1) => format!("{whose}, 1 writer"),
            How::Write(writers) => format!("{whose}, {writers} writers"),
        }
    }

    /// The heading of the rows that it stands among.
    pub(super) fn layer(self) -> String {
        match self.how {
            How::InProcess(_) => format!("in process, {READERS} at once"),
            How::Http(_) => format!("over HTTP, {CONNECTIONS} connections"),
            How::Write(_) => "durable writes, in process".into(),
        }
    }

    /// Whether its heading and name contain this.
    pub(super) fn is_called(self, text: &str) -> bool {
        format!("{}: {}", self.layer(), self.name()).contains(text)
    }

    pub(super) fn run(self, bench: &Bench, runtime: &Runtime, time: Duration) -> Result<Sample> {
        let site = match self.whose {
            Whose::Sled => &bench.sled,
            Whose::Redis => &bench.redis,
            Whose::Usual => {
                return match self.how {
                    How::Http(_) => bench.usual.load().run(CONNECTIONS, time),
                    How::InProcess(_) | How::Write(_) => runtime.block_on(bench.usual.read(READERS, time)),
                };
            }
        };
        match self.how {
            How::InProcess(kind) => runtime.block_on(site.read(kind, READERS, time)),
            How::Http(kind) => site.load(kind).run(CONNECTIONS, time),
            How::Write(writers) => runtime.block_on(site.write(writers, time)),
        }
    }
}

/// A number of one row compared with the same of another.
pub(super) struct Aim {
    pub(super) text: &'static str,
    pub(super) row: Row,
    pub(super) to: Row,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy)]
pub(super) enum Bound {
    /// Times the other's rate, at least.
    Rate(f64),
    /// Times the other's 99th percentile, at most.
    P99(f64),
}

pub(super) static AIMS: [Aim; 4] = [
    Aim {
        text: "in process, a hit beside tower-sessions: requests a second",
        row: row(Whose::Sled, How::InProcess(Read::Hit)),
        to: row(Whose::Usual, How::InProcess(Read::Reload)),
        bound: Bound::Rate(10.0),
    },
    Aim {
        text: "over HTTP, a hit beside tower-sessions: p99",
        row: row(Whose::Sled, How::Http(Read::Hit)),
        to: row(Whose::Usual, How::Http(Read::Reload)),
        bound: Bound::P99(0.5),
    },
    Aim {
        text: "sled, 64 writers beside one: writes a second",
        row: row(Whose::Sled, How::Write(WRITERS)),
        to: row(Whose::Sled, How::Write(1)),
        bound: Bound::Rate(20.0),
    },
    Aim {
        text: "Redis, 64 writers beside one: writes a second",
        row: row(Whose::Redis, How::Write(WRITERS)),
        to: row(Whose::Redis, How::Write(1)),
        bound: Bound::Rate(20.0),
    },
];
