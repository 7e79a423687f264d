//! One frame through one program by `BPF_PROG_TEST_RUN`: verdict, frame and counters come back.

use crate::blank::Loaded;
use crate::frame::{self, Segment};
use crate::maps::Counts;
use crate::netns::Netns;
use crate::setup::Setup;
use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use lb_common::counter::Counter;
use std::ops::{Deref, DerefMut};

/// What an XDP program returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
    /// No XDP verdict at all.
    Unknown(u32),
}

/// What a tc program returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcVerdict {
    Ok,
    Shot,
    Redirect,
    /// Some other action, as a signed number.
    Other(i32),
}

/// What became of a frame.
pub struct Outcome<V> {
    pub verdict: V,
    pub frame: Vec<u8>,
    /// Every counter that moved, and by how much.
    pub counted: Vec<(Counter, u64)>,
}

/// The programs, loaded and not attached, with their maps filled from a [`Setup`].
pub struct Runner {
    pub setup: Setup,
    /// Nothing only while this is dropped.
    loaded: Option<Loaded>,
    netns: Netns,
    /// Whether frames are sent by a thread that is in the namespace.
    entered: bool,
}

impl Runner {
    pub fn new(setup: Setup) -> Result<Self> {
        // A clone that the joint sends goes to an interface of this namespace, or nowhere.
        let netns = Netns::new("packet table")?;
        netns.sysctl("ipv6/conf/default/disable_ipv6", 1)?;
        netns.ip(&["link add out0 type veth peer name out1", "link set out0 up", "link set out1 up"])?;
        let mut loaded = Loaded::take(setup.sizes)?;
        loaded.maps.apply(&setup)?;
        Ok(Self { setup, loaded: Some(loaded), netns, entered: false })
    }

    /// Moves the calling thread to where the programs run, for good: it alone may send frames from then on, and needs no other
    /// thread for each.
    pub fn enter(&mut self) {
        self.netns.enter();
        self.entered = true;
    }

    /// Changes what the maps say.
    pub fn change(&mut self, change: impl FnOnce(&mut Setup)) -> Result<()> {
        change(&mut self.setup);
        loaded_mut(&mut self.loaded).maps.apply(&self.setup)
    }

    /// Sends a frame through `lb`, as if it had arrived on the loopback interface.
    pub fn xdp(&self, frame: &[u8]) -> Result<Outcome<Verdict>> {
        let program: &Xdp = self.ebpf.program("lb").context("the object has no program lb")?.try_into()?;
        let Outcome { verdict, frame, counted } = self.run(program, frame)?;
        let verdict = match verdict {
            0 => Verdict::Aborted,
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Tx,
            4 => Verdict::Redirect,
            other => Verdict::Unknown(other),
        };
        Ok(Outcome { verdict, frame, counted })
    }

    /// Sends frames through `lb` one right after the other, whatever becomes of them: for threads that do so at once.
    pub fn flood<'a>(&self, frames: impl IntoIterator<Item = &'a [u8]> + Send) -> Result<()> {
        let program: &Xdp = self.ebpf.program("lb").context("the object has no program lb")?.try_into()?;
        self.netns.run(|| {
            for frame in frames {
                program.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() })?;
            }
            Ok(())
        })
    }

    /// Sends a frame through `lb_joint`.
    pub fn joint(&self, frame: &[u8]) -> Result<Outcome<TcVerdict>> {
        let program: &SchedClassifier =
            self.ebpf.program("lb_joint").context("the object has no program lb_joint")?.try_into()?;
        let Outcome { verdict, frame, counted } = self.run(program, frame)?;
        let verdict = match verdict.cast_signed() {
            0 => TcVerdict::Ok,
            2 => TcVerdict::Shot,
            7 => TcVerdict::Redirect,
            other => TcVerdict::Other(other),
        };
        Ok(Outcome { verdict, frame, counted })
    }

    /// Counters summed over everything.
    pub fn counts(&self) -> Result<Counts> {
        self.maps.counts()
    }

    /// An interface to which the joint can send.
    pub fn ifindex(&self) -> Result<u32> {
        self.netns.ifindex("out0")
    }

    /// The namespace in which programs run, with the veth pair `out0`, `out1`.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    fn run<P>(&self, program: &P, frame: &[u8]) -> Result<Outcome<u32>>
    where
        P: Sync + for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
    {
        let before = self.counts()?;
        let mut out = vec![0; 4096];
        let mut run = || {
            let options = TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            };
            program.test_run(options)
        };
        let result = if self.entered { run() } else { self.netns.run(run) };
        let result = result.with_context(|| format!("test run of {}", frame::describe(frame)))?;
        out.truncate(result.data_size_out as usize);
        Ok(Outcome { verdict: result.return_value, frame: out, counted: self.counts()?.since(&before) })
    }
}

/// The maps are within reach as `runner.maps`.
impl Deref for Runner {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        self.loaded.as_ref().expect("only dropping takes it")
    }
}

impl DerefMut for Runner {
    fn deref_mut(&mut self) -> &mut Loaded {
        loaded_mut(&mut self.loaded)
    }
}

fn loaded_mut(loaded: &mut Option<Loaded>) -> &mut Loaded {
    loaded.as_mut().expect("only dropping takes it")
}

impl Drop for Runner {
    fn drop(&mut self) {
        // After a failure it goes as it is.
        if let Some(loaded) = self.loaded.take().filter(|_| !std::thread::panicking()) {
            loaded.give_back().expect("maps can be emptied");
        }
    }
}

impl<V> Outcome<V> {
    /// The frame as a segment.
    ///
    /// # Panics
    /// When it is none, or a checksum or length is wrong.
    pub fn segment(&self) -> Segment {
        Segment::parse(&self.frame).unwrap_or_else(|why| panic!("{why}: {}", frame::describe(&self.frame)))
    }

    pub fn counted(&self, counter: Counter) -> bool {
        self.counted.iter().any(|(c, _)| *c == counter)
    }
}

impl<V: std::fmt::Debug> std::fmt::Debug for Outcome<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} counted", self.verdict, frame::describe(&self.frame))?;
        self.counted.iter().try_for_each(|(counter, by)| write!(f, " {}+{by}", counter.name()))
    }
}
