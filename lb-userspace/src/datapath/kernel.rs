//! What lbd uses of a kernel and not every kernel has: asked of the running one, not guessed from its version. Told alike at
//! start, by `lbd check` and in docs/kernels.md.

#[cfg(test)]
mod tests;

use super::error::DatapathError;
use super::sys;
use crate::net::{Trial, sysctl};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};
use std::fmt;

/// The oldest kernel that tests run. lbd tries older ones.
const OLDEST_TESTED: (u32, u32) = (6, 1);

/// What was seen of a kernel; `None` where we may not ask, or got no answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Facts {
    root: bool,
    release: String,
    /// The system call `bpf`.
    bpf: Option<bool>,
    /// Why a program that every kernel takes was refused, if not for a lack of rights.
    refusal: Option<String>,
    jit: Option<bool>,
    bpf_loop: Option<bool>,
    load_bytes: Option<bool>,
    tcx: Option<bool>,
    /// What counting frames that are dropped after a verdict takes.
    lost: Option<bool>,
    membarrier: Option<bool>,
    network: Trial,
}

impl Facts {
    fn look() -> Self {
        let mut facts = Self {
            root: nix::unistd::geteuid().is_root(),
            release: nix::sys::utsname::uname()
                .map_or_else(|_| String::new(), |system| system.release().to_string_lossy().into_owned()),
            membarrier: Some(sys::has_membarrier()),
            ..Self::default()
        };
        match sys::try_program() {
            Ok(jit) => (facts.bpf, facts.jit) = (Some(true), Some(jit)),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOSYS) => facts.bpf = Some(false),
                // Said by the system call, or by who stands before it.
                Some(libc::EPERM | libc::EACCES) => {}
                _ => (facts.bpf, facts.refusal) = (Some(true), Some(error.to_string())),
            },
        }
        if facts.jit.is_none() {
            facts.jit = sysctl("net/core/bpf_jit_enable").map(|value| value != "0");
        }
        if facts.bpf == Some(true) {
            let helper = |helper| is_helper_supported(ProgramType::Xdp, helper).ok();
            facts.bpf_loop = helper(BpfHelper::BPF_FUNC_loop);
            facts.load_bytes = helper(BpfHelper::BPF_FUNC_xdp_load_bytes);
            facts.tcx = match sys::query_tcx() {
                Ok(()) => Some(true),
                Err(error) => (error.raw_os_error() == Some(libc::EINVAL)).then_some(false),
            };
        }
        facts.lost = match super::lost::offsets() {
            Ok(_) if facts.bpf == Some(true) => is_program_supported(ProgramType::RawTracePoint).ok(),
            Ok(_) => None,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => None,
            Err(_) => Some(false),
        };
        // What has TCX links needs no filters.
        facts.network = Trial::run(facts.tcx != Some(true));
        facts
    }

    /// Whether the version is at least this; `None` when the release has no numbers.
    fn since(&self, version: (u32, u32)) -> Option<bool> {
        parse_release(&self.release).map(|found| found >= version)
    }
}

/// "6.1.0-13-amd64" → (6, 1).
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// What it means when a feature is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Weight {
    /// lbd cannot run.
    Required,
    /// lbd runs, and whoever runs it should know.
    Warn,
    /// lbd runs, and hardly anybody will see a difference.
    Note,
}

/// Something of a kernel that lbd uses.
struct Feature {
    name: &'static str,
    /// The first version of Linux that has it, and how it is configured.
    since: &'static str,
    weight: Weight,
    /// What does without it, what that costs, and what can be done.
    without: &'static str,
    seen: fn(&Facts) -> Option<bool>,
}

const FEATURES: [Feature; 9] = [
    Feature {
        name: "the system call bpf",
        since: "CONFIG_BPF_SYSCALL",
        weight: Weight::Required,
        without: "no program can be loaded; another kernel is needed",
        seen: |facts| facts.bpf,
    },
    Feature {
        name: "the helper bpf_loop",
        since: "Linux 5.17",
        weight: Weight::Required,
        without: "the programs cannot be loaded; a newer kernel is needed",
        seen: |facts| facts.bpf_loop.or_else(|| facts.since((5, 17))),
    },
    Feature {
        name: "the helper bpf_xdp_load_bytes",
        since: "Linux 5.18",
        weight: Weight::Required,
        without: "the programs cannot be loaded; a newer kernel is needed",
        seen: |facts| facts.load_bytes.or_else(|| facts.since((5, 18))),
    },
    Feature {
        name: "the BPF JIT",
        since: "CONFIG_BPF_JIT, net.core.bpf_jit_enable",
        weight: Weight::Required,
        without: "the kernel refuses programs with callbacks, as these are; switch it on with `sysctl -w \
                  net.core.bpf_jit_enable=1`",
        seen: |facts| facts.jit,
    },
    Feature {
        name: "filters of clsact",
        since: "CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF",
        weight: Weight::Required,
        without: "without TCX links `lb_joint` cannot be attached in another way; try `modprobe sch_ingress` and \
                  `modprobe cls_bpf`",
        // Of use only where there is nothing better.
        seen: |facts| if facts.tcx == Some(true) { Some(true) } else { facts.network.filter },
    },
    Feature {
        name: "TCX links",
        since: "Linux 6.6",
        weight: Weight::Warn,
        without: "`lb_joint` is attached as a filter of clsact; `tc` can remove it, and filters of others can come before \
                  it, and then connections whose request chooses the backend do not open",
        seen: |facts| facts.tcx.or_else(|| facts.since((6, 6)).filter(|new| !new)),
    },
    Feature {
        name: "tracepoints of XDP",
        since: "CONFIG_BPF_EVENTS, CONFIG_DEBUG_INFO_BTF",
        weight: Weight::Warn,
        without: "frames that the kernel drops after a verdict are not counted",
        seen: |facts| facts.lost,
    },
    Feature {
        name: "network namespaces with veth pairs",
        since: "CONFIG_NET_NS, CONFIG_VETH",
        weight: Weight::Note,
        without: "managed servers cannot be run, others can be balanced; try `modprobe veth`",
        seen: |facts| match facts.network.namespaces {
            Some(false) => Some(false),
            _ => facts.network.veth,
        },
    },
    Feature {
        name: "membarrier for all processors",
        since: "CONFIG_MEMBARRIER; never with nohz_full",
        weight: Weight::Note,
        without: "a change of the tables waits 100 ms when one has just been made",
        seen: |facts| facts.membarrier,
    },
];

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.since, self.without)
    }
}

/// The running kernel, as far as lbd depends on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel(Facts);

impl Kernel {
    /// Asks the kernel. Without root much cannot be asked; what was not is said. Takes some milliseconds.
    pub fn look() -> Self {
        Self(Facts::look())
    }

    /// Whether there are TCX links; `None` when it could not be asked.
    pub(super) fn tcx(&self) -> Option<bool> {
        self.0.tcx
    }

    /// Refuses a kernel that cannot run the programs.
    pub(super) fn check(&self) -> Result<(), DatapathError> {
        if self.0.bpf.is_none() {
            return Err(DatapathError::Forbidden);
        }
        let lacks: Vec<_> = self.missing(Weight::Required).map(Feature::to_string).collect();
        if !lacks.is_empty() {
            return Err(DatapathError::Kernel { release: self.0.release.clone(), lacks: lacks.join("; ") });
        }
        match &self.0.refusal {
            Some(reason) => {
                Err(DatapathError::Trial { release: self.0.release.clone(), reason: reason.clone() })
            }
            None => Ok(()),
        }
    }

    /// Tells the log what there is to know before the programs are loaded.
    pub(super) fn log(&self) {
        tracing::info!(release = self.0.release, "the kernel {}", self.summary());
        if self.is_untested() {
            tracing::warn!("the kernel is {UNTESTED}");
        }
        self.missing(Weight::Warn).for_each(|feature| tracing::warn!("the kernel is without {feature}"));
        self.missing(Weight::Note).for_each(|feature| tracing::info!("the kernel is without {feature}"));
    }

    /// In few words, after "the kernel".
    fn summary(&self) -> &'static str {
        let lacks = |weight| self.missing(weight).next().is_some();
        match () {
            () if lacks(Weight::Required) => "cannot run lbd",
            () if self.0.refusal.is_some() => "refuses even the smallest XDP program",
            () if lacks(Weight::Warn) || lacks(Weight::Note) => "lacks something that lbd can do without",
            () if self.unseen().next().is_some() => "lacks nothing that could be looked at",
            () => "has everything that lbd uses",
        }
    }

    fn is_untested(&self) -> bool {
        self.0.since(OLDEST_TESTED) == Some(false)
    }

    fn missing(&self, weight: Weight) -> impl Iterator<Item = &'static Feature> {
        let is_missing =
            move |feature: &&Feature| feature.weight == weight && (feature.seen)(&self.0) == Some(false);
        FEATURES.iter().filter(is_missing)
    }

    fn unseen(&self) -> impl Iterator<Item = &'static Feature> {
        FEATURES.iter().filter(|feature| (feature.seen)(&self.0).is_none())
    }
}

const UNTESTED: &str = "older than Linux 6.1, the oldest that is tested: it may refuse the programs";

/// As `lbd check` prints it: a line with the release, and one more for each thing to know.
impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine's kernel {} {}", self.0.release, self.summary())?;
        if self.is_untested() {
            write!(f, "\n  {UNTESTED}")?;
        }
        if let Some(reason) = &self.0.refusal {
            write!(f, "\n  it says: {reason}")?;
        }
        for weight in [Weight::Required, Weight::Warn, Weight::Note] {
            for feature in self.missing(weight) {
                write!(f, "\n  without {feature}")?;
            }
        }
        let unseen: Vec<_> = self.unseen().map(|feature| feature.name).collect();
        if !unseen.is_empty() {
            let why = if self.0.root { "for this process may not ask" } else { "for only root may ask" };
            write!(f, "\n  not looked at, {why}: {}", unseen.join(", "))?;
        }
        Ok(())
    }
}
