//! What the host and the machine that it has started say to each other: a plan that stands in the machine's file system,
//! and events, one JSON object a line, over its second serial port.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the plan stands in the machine.
pub(crate) const PLAN: &str = "/plan.json";
/// Where the machine writes events.
pub(crate) const PORT: &str = "/dev/ttyS1";

/// What a machine does between its start and its power-off.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Kernel modules to load first.
    pub(crate) modules: Vec<String>,
    pub(crate) steps: Vec<Step>,
}

/// A command, with a limit of time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    /// A column of the report.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: PathBuf,
    pub(crate) seconds: u64,
}

/// What happens in a machine. `step` is an index into [`Plan::steps`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The kernel runs, for so long.
    Up {
        release: String,
        seconds: f64,
    },
    Begin {
        step: usize,
    },
    /// Something that the step has printed.
    Line {
        step: usize,
        text: String,
    },
    End {
        step: usize,
        ended: Ended,
        seconds: f64,
    },
    /// Something is wrong with the machine itself.
    Trouble {
        text: String,
    },
    /// Every step has ended; the power goes off.
    Off,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    Well,
    Badly,
    /// It was killed at its limit of time.
    Late,
}
