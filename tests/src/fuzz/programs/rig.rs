//! The programs, loaded once and told of the town; each frame that runs through them is judged by the [`laws`](super::laws).

use super::laws::{self, Frame, Ran};
use super::sequence::Condition;
use super::town::{self, SERVICES};
use crate::frame::describe;
use crate::fuzz::SEEN;
use crate::runner::{Outcome, Runner, TcVerdict, Verdict};
use crate::setup::Setup;
use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::hash::mix64;
use std::collections::BTreeSet;
use std::net::SocketAddrV4;

/// An Ethernet header and an IPv4 header.
const MIN_IPV4: usize = 34;

pub(super) struct Rig {
    pub(super) runner: Runner,
    /// Whether backends are not what they are in a new town.
    changed: bool,
    /// Clients that have sent something to a service, with its id.
    clients: BTreeSet<(SocketAddrV4, u16)>,
    /// Of them, those of whom something was sent whose checksum is wrong.
    corrupt: BTreeSet<SocketAddrV4>,
    /// Keys that backends of services that learn can have handed out.
    handed_out: usize,
    seen: Vec<u16>,
    before: u64,
}

/// What became of a frame.
pub(super) struct Done {
    /// The frame that left, if one did.
    pub(super) left: Option<Vec<u8>>,
    pub(super) counted: Vec<(Counter, u64)>,
}

impl Done {
    pub(super) fn counted(&self, counter: Counter) -> bool {
        self.counted.iter().any(|(found, _)| *found == counter)
    }
}

impl Rig {
    /// The calling thread is the only one that may use it.
    pub(super) fn new() -> Result<Self> {
        crate::require_root();
        let mut runner = Runner::new(town::setup(0)?)?;
        let ifindex = runner.ifindex()?;
        runner.change(|setup| setup.backends.iter_mut().for_each(|backend| backend.ifindex = ifindex))?;
        runner.enter();
        Ok(Self {
            runner,
            changed: false,
            clients: BTreeSet::new(),
            corrupt: BTreeSet::new(),
            handed_out: 0,
            seen: Vec::new(),
            before: 0,
        })
    }

    pub(super) fn setup(&self) -> &Setup {
        &self.runner.setup
    }

    /// Forgets all packets, and every change of backends.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.runner.forget_packets()?;
        if std::mem::take(&mut self.changed) {
            let ready = town::setup(self.runner.ifindex()?)?;
            self.runner.change(|setup| *setup = ready)?;
        }
        self.clients.clear();
        self.corrupt.clear();
        (self.handed_out, self.before) = (0, 0);
        self.seen.clear();
        Ok(())
    }

    pub(super) fn take_seen(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.seen)
    }

    /// Changes a backend.
    pub(super) fn change(&mut self, slot: u16, is: Condition) -> Result<()> {
        let slot = slot % self.setup().backends.len() as u16;
        self.changed = true;
        self.runner.change(|setup| {
            let backend = &mut setup.backends[usize::from(slot)];
            backend.has_next_hop = u8::from(is != Condition::Lost);
            backend.state = match is {
                Condition::Ready | Condition::Lost => State::Ready,
                Condition::Drain => State::Drain,
                Condition::Down => State::Down,
                Condition::Gone => State::Gone,
            } as u8;
        })
    }

    /// Runs a frame through `lb`, and through `lb_joint` where that passes it.
    ///
    /// # Errors
    /// The law that is broken, with the frame.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<Vec<Done>> {
        let frame = Frame::of(bytes);
        self.note(&frame);
        let outcome = self.runner.xdp(bytes)?;
        let passed = outcome.verdict == Verdict::Pass;
        let mut done = vec![self.judged(&frame, Ran::Xdp(outcome.verdict), outcome, bytes)?];
        // Shorter frames are not run as IPv4, and nothing in them is looked at.
        if passed && bytes.len() >= MIN_IPV4 {
            let outcome = self.runner.joint(bytes)?;
            if outcome.verdict != TcVerdict::Ok || !outcome.counted.is_empty() {
                done.push(self.judged(&frame, Ran::Joint(outcome.verdict), outcome, bytes)?);
            }
        }
        Ok(done)
    }

    /// What the laws have to know of a frame.
    fn note(&mut self, frame: &Frame) {
        let Some((src, dst)) = frame.ends else { return };
        let corrupt = !frame.is_right();
        for id in 1..=SERVICES {
            let is_udp = self.setup().services[usize::from(id) - 1].protocol == town::UDP;
            if dst == town::dial(id) && is_udp == (frame.protocol == town::UDP) {
                self.clients.insert((src, id));
            }
        }
        if corrupt {
            self.corrupt.insert(src);
            self.corrupt.insert(dst);
        }
        // A segment can hold several keys, each four bytes or more behind the name of its field.
        let learning = [town::LEARNED, 8].into_iter().flat_map(town::slots);
        if learning.into_iter().any(|slot| src == crate::scene::backend(slot)) {
            self.handed_out += 4;
        }
    }

    fn judged<V>(&mut self, frame: &Frame, ran: Ran, outcome: Outcome<V>, bytes: &[u8]) -> Result<Done> {
        let Outcome { frame: out, counted, .. } = outcome;
        let corrupt =
            frame.ends.is_some_and(|(src, dst)| self.corrupt.contains(&src) || self.corrupt.contains(&dst));
        let told = |why: &str| {
            format!(
                "{why}\n  in  {}\n  out {}\n  {ran:?}, counted {}",
                describe(bytes),
                describe(&out),
                names(&counted)
            )
        };
        laws::of_frame(frame, ran, &Frame::of(&out), &counted, corrupt)
            .map_err(|why| anyhow::anyhow!(told(&why)))?;
        self.remember(ran, &counted);
        let left = matches!(ran, Ran::Xdp(Verdict::Tx | Verdict::Redirect) | Ran::Joint(TcVerdict::Redirect))
            .then_some(out);
        Ok(Done { left, counted })
    }

    /// Notes what happened, and what happened after what, for a fuzzer that looks for what is new.
    fn remember(&mut self, ran: Ran, counted: &[(Counter, u64)]) {
        let ran = match ran {
            Ran::Xdp(verdict) => format!("{verdict:?}").len() as u64,
            Ran::Joint(verdict) => 32 + format!("{verdict:?}").len() as u64,
        };
        let all = counted.iter().fold(ran, |all, (counter, _)| mix64(all ^ (*counter as u64 + 1) << 8));
        for place in [all, mix64(self.before ^ all.rotate_left(7))] {
            self.seen.push((place % SEEN as u64) as u16);
        }
        self.before = all;
    }

    /// Judges the maps.
    ///
    /// # Errors
    /// The law that is broken.
    pub(super) fn judge_maps(&self) -> Result<()> {
        let found = laws::Maps {
            flows: self.runner.maps.table()?,
            stashes: self.runner.maps.every_stash()?,
            homes: self.runner.maps.homes()?.into_iter().map(|(_, home)| home).collect(),
            live: (0..self.setup().backends.len() as u16)
                .map(|slot| self.runner.maps.live(slot))
                .collect::<Result<_>>()?,
        };
        laws::of_maps(&found, &self.clients, self.handed_out).map_err(|why| anyhow::anyhow!("{why}"))
    }
}

pub(super) fn names(counted: &[(Counter, u64)]) -> String {
    counted.iter().map(|(counter, by)| format!("{}+{by} ", counter.name())).collect()
}
