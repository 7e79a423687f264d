//! A service, backends and one client on a [`Runner`], with shorthands that bring a connection to any of its states.

use crate::balancer::dial;
use crate::frame::{ACK, FIN, Mac, Opt, PSH, SYN, Segment};
use crate::object::Sizes;
use crate::runner::{Outcome, Runner, TcVerdict, Verdict};
use crate::setup::{NextHop, Setup};
use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::syn_cookie::Agreed;
use std::net::SocketAddrV4;

pub const SERVICE: u16 = 1;
/// The client's initial sequence number.
pub const ISN: u32 = 0xffff_ff00;
/// Its TSval at its SYN.
pub const TS: u32 = 7_000;
/// Its window scale.
pub const CLIENT_SCALE: u8 = 10;
/// Initial sequence number and TSval of every backend.
pub const BACKEND_ISN: u32 = 0x1234_5678;
pub const BACKEND_TS: u32 = 99_000;
/// Where the client's frames come from and go to.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 1, 2];
pub const LOCAL_MAC: Mac = [2, 0, 0, 0, 1, 1];
/// A request without a token.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

/// See the module.
pub struct Scene {
    pub runner: Runner,
    pub client: SocketAddrV4,
    /// Whether the client uses timestamps.
    pub stamps: bool,
    pub agreed: Agreed,
}

/// Own and next hop's MAC address of a backend.
pub fn macs(slot: u16) -> (Mac, Mac) {
    ([2, 0, 0, 1, slot as u8, 1], [2, 0, 0, 1, slot as u8, 2])
}

/// Address and port of a backend.
pub fn backend(slot: u16) -> SocketAddrV4 {
    SocketAddrV4::new([10, 0, 10 + slot as u8, 2].into(), 8080 + slot)
}

impl Scene {
    pub fn new(backends: u16) -> Result<Self> {
        Self::sized(Sizes::default(), backends)
    }

    /// The same with tables of another size.
    pub fn sized(sizes: Sizes, backends: u16) -> Result<Self> {
        let mut setup = Setup::new(sizes);
        setup.service(dial());
        for slot in 0..backends {
            let (local_mac, mac) = macs(slot);
            setup.backend(SERVICE, backend(slot), Some(NextHop { ifindex: 0, local_mac, mac }));
        }
        let mut runner = Runner::new(setup)?;
        let ifindex = runner.ifindex()?;
        runner.change(|setup| setup.backends.iter_mut().for_each(|b| b.ifindex = ifindex))?;
        let agreed = Agreed { mss: 1460, window_scale: CLIENT_SCALE, sack: true, timestamps: true };
        Ok(Self { runner, client: "10.0.1.2:40000".parse()?, stamps: true, agreed })
    }

    /// The same with a client that has no timestamps.
    pub fn without_timestamps(self) -> Self {
        Self { stamps: false, agreed: Agreed { timestamps: false, ..self.agreed }, ..self }
    }

    /// The client's SYN.
    pub fn syn(&self) -> Segment {
        let stamps = self.stamps.then_some((TS, 0));
        Segment::new(self.client, dial())
            .macs(CLIENT_MAC, LOCAL_MAC)
            .seq(ISN)
            .flags(SYN)
            .options(Opt::linux_syn(1460, Some(CLIENT_SCALE), true, stamps))
    }

    /// The SYN cookie that answers it.
    pub fn cookie(&self) -> u32 {
        self.runner.setup.cookie(self.client, SERVICE, ISN, self.agreed)
    }

    /// The TSval of our SYN-ACK, which the client echoes.
    pub fn echo(&self) -> u32 {
        self.runner.setup.stamp(self.client, SERVICE, ISN)
    }

    /// The client's segment at an offset in its stream, acknowledging our SYN-ACK and nothing more.
    pub fn segment(&self, at: u32, flags: u8, payload: &[u8]) -> Segment {
        let segment = Segment::new(self.client, dial())
            .macs(CLIENT_MAC, LOCAL_MAC)
            .seq(ISN.wrapping_add(1).wrapping_add(at))
            .ack(self.cookie().wrapping_add(1))
            .flags(ACK | flags)
            .window(501)
            .payload(payload);
        if self.stamps { segment.timestamps(TS + 1, self.echo()) } else { segment }
    }

    /// The first payload.
    pub fn first(&self, payload: &[u8]) -> Segment {
        self.segment(0, PSH, payload)
    }

    /// A request that presents a token.
    pub fn request(&self, token: &str) -> Segment {
        self.first(format!("GET / HTTP/1.1\r\nHost: shop\r\nCookie: lb={token}\r\n\r\n").as_bytes())
    }

    /// The SYN that the program sends to a backend in place of the first payload.
    pub fn offered(&self, slot: u16) -> Segment {
        let (local, next) = macs(slot);
        let stamps = self.stamps.then_some((TS + 1, 0));
        let options = match stamps {
            Some((val, echo)) => vec![
                Opt::Mss(1460),
                Opt::SackPermitted,
                Opt::Timestamps { val, echo },
                Opt::Nop,
                Opt::WindowScale(CLIENT_SCALE),
            ],
            None => {
                let nops = |n| std::iter::repeat_n(Opt::Nop, n);
                let mut options = vec![Opt::Mss(1460), Opt::SackPermitted];
                options.extend(nops(11));
                options.push(Opt::WindowScale(CLIENT_SCALE));
                options
            }
        };
        Segment::new(self.client, backend(slot))
            .macs(local, next)
            .seq(ISN)
            .flags(SYN)
            .window(65_535)
            .options(options)
    }

    /// What a backend sends: addressed to the client, from its own MAC.
    pub fn from_backend(&self, slot: u16) -> Segment {
        let (local, next) = macs(slot);
        Segment::new(backend(slot), self.client).macs(next, local)
    }

    /// A backend's SYN-ACK, with everything that was offered.
    pub fn syn_ack(&self, slot: u16) -> Segment {
        let stamps = self.stamps.then_some((BACKEND_TS, TS + 1));
        self.from_backend(slot)
            .seq(BACKEND_ISN)
            .ack(ISN.wrapping_add(1))
            .flags(SYN | ACK)
            .options(Opt::linux_syn(1460, Some(9), true, stamps))
    }

    /// A backend's RST in answer to a SYN.
    pub fn refusal(&self, slot: u16) -> Segment {
        self.from_backend(slot).ack(ISN.wrapping_add(1)).flags(crate::frame::RST | ACK).window(0)
    }

    /// Runs a segment through XDP.
    pub fn xdp(&self, segment: &Segment) -> Result<Outcome<Verdict>> {
        self.runner.xdp(&segment.bytes())
    }

    /// Runs a segment through the joint.
    pub fn joint(&self, segment: &Segment) -> Result<Outcome<TcVerdict>> {
        self.runner.joint(&segment.bytes())
    }

    /// Sends the first payload; returns the slot that was chosen.
    ///
    /// # Panics
    /// When no backend gets a SYN.
    pub fn bind(&self, payload: &[u8]) -> Result<u16> {
        let outcome = self.xdp(&self.first(payload))?;
        assert!(outcome.counted(Counter::Bound), "{outcome:?}");
        Ok(self.slot_of(&outcome.segment()))
    }

    /// The backend to which a segment is addressed.
    pub fn slot_of(&self, segment: &Segment) -> u16 {
        let all = 0..self.runner.setup.backends.len() as u16;
        all.into_iter().find(|slot| backend(*slot) == segment.dst).expect("addressed to a backend")
    }

    /// Brings the connection to established; returns the slot.
    ///
    /// # Panics
    /// When a step on the way fails.
    pub fn splice(&self) -> Result<u16> {
        let slot = self.bind(REQUEST)?;
        let up = self.xdp(&self.syn_ack(slot))?;
        assert_eq!(
            (up.verdict, &up.counted[..]),
            (Verdict::Pass, &[(Counter::PassedToJoint, 1)][..]),
            "{up:?}"
        );
        let outcome = self.joint(&self.syn_ack(slot))?;
        assert!(outcome.counted(Counter::Spliced), "{outcome:?}");
        Ok(slot)
    }

    /// The next segment of a client whose request was [`REQUEST`].
    pub fn next(&self, flags: u8, payload: &[u8]) -> Segment {
        self.segment(REQUEST.len() as u32, flags, payload)
    }

    /// The backend's segment at an offset in its stream.
    pub fn response(&self, slot: u16, at: u32, flags: u8, payload: &[u8]) -> Segment {
        let segment = self
            .from_backend(slot)
            .seq(BACKEND_ISN.wrapping_add(1).wrapping_add(at))
            .ack(ISN.wrapping_add(1).wrapping_add(REQUEST.len() as u32))
            .flags(ACK | flags)
            .window(300)
            .payload(payload);
        if self.stamps { segment.timestamps(BACKEND_TS + 5, TS + 1) } else { segment }
    }

    /// FINs from both sides.
    pub fn close(&self, slot: u16) -> Result<()> {
        self.xdp(&self.next(FIN, b""))?;
        self.xdp(&self.response(slot, 0, FIN, b""))?;
        Ok(())
    }
}
