//! Handles on the test programs of `lb-ebpf`: an end point's eye and its bad luck.

#[path = "../../lb-ebpf/src/testbed/rule.rs"]
pub mod rule;

pub use rule::{Rule, Seen, Tally};

use crate::object::{load_program, load_testbed};
use crate::topology::{Host, NIC};
use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use rule::{Client, DROP, DUPLICATE, IMAGE_ROOM, Image, Undo};
use std::net::SocketAddrV4;

// SAFETY: plain data without padding, as its `bytemuck::Pod` says.
unsafe impl aya::Pod for Rule {}
// SAFETY: as above.
unsafe impl aya::Pod for Tally {}
// SAFETY: as above.
unsafe impl aya::Pod for Seen {}
// SAFETY: as above.
unsafe impl aya::Pod for Image {}
// SAFETY: as above.
unsafe impl aya::Pod for Undo {}
// SAFETY: as above.
unsafe impl aya::Pod for Client {}

impl Image {
    /// # Panics
    /// When the frame is longer than an image can be.
    pub fn new(frame: &[u8]) -> Self {
        let mut image = Self { len: frame.len() as u32, flow: 0, open: 0, bytes: [0; IMAGE_ROOM] };
        image.bytes[..frame.len()].copy_from_slice(frame);
        image
    }
}

impl Client {
    pub fn new(client: SocketAddrV4) -> Self {
        let [a, b] = client.port().to_be_bytes();
        Self { addr: u32::from_ne_bytes(client.ip().octets()), port: u16::from_ne_bytes([a, b]), _pad: 0 }
    }
}

impl Rule {
    /// Matches every IPv4 frame and does nothing to it; narrowed with the methods below or directly.
    pub const ANY: Self = Self {
        action: 0,
        src_port: 0,
        dst_port: 0,
        flags_mask: 0,
        flags: 0,
        payload: 0,
        _pad: 0,
        every: 0,
        first: 0,
        count: 0,
    };

    /// Drops each `n`-th frame that matches.
    pub const fn drop_every(self, n: u32) -> Self {
        Self { action: DROP, every: n, ..self }
    }
    /// Drops the first `n` frames that match.
    pub const fn drop_first(self, n: u32) -> Self {
        Self { action: DROP, first: 0, count: n, ..self }
    }
    /// Sends the first `n` frames that match twice; at egress only.
    pub const fn double_first(self, n: u32) -> Self {
        Self { action: DUPLICATE, first: 0, count: n, ..self }
    }
    /// TCP segments with payload.
    pub const fn with_payload(self) -> Self {
        Self { payload: 1, ..self }
    }
    /// TCP segments without payload.
    pub const fn without_payload(self) -> Self {
        Self { payload: 2, ..self }
    }
    /// Those of the flags in `mask` must be as in `flags`.
    pub const fn flags(self, mask: u8, flags: u8) -> Self {
        Self { flags_mask: mask, flags, ..self }
    }
}

/// Where a filter stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// XDP: sees each segment as it arrives, and checks its checksums.
    Ingress,
    /// tc: sees what the stack sends, which may be several segments in one.
    Egress,
}

/// A filter at an end point; goes away when dropped.
pub struct Filter {
    rules: Array<MapData, Rule>,
    tally: Array<MapData, Tally>,
    seen: Array<MapData, Seen>,
    /// Owns program and link.
    _ebpf: Ebpf,
}

impl Filter {
    pub fn attach(host: &Host, side: Side) -> Result<Self> {
        let mut ebpf = load_testbed()?;
        match side {
            Side::Ingress => {
                let program: &mut Xdp =
                    ebpf.program_mut("tb_watch").context("no program tb_watch")?.try_into()?;
                program.load()?;
                host.netns.run(|| program.attach(NIC, XdpMode::Driver))?;
            }
            Side::Egress => {
                let program = load_program(&mut ebpf, "tb_filter", SchedClassifier::load)?;
                // The newer way to attach knows no verdict that loses a frame behind its sender's back.
                let link = host.netns.run(|| -> Result<_> {
                    qdisc_add_clsact(NIC)?;
                    let netlink = TcAttachOptions::Netlink(NlOptions::default());
                    Ok(program.attach_with_options(NIC, TcAttachType::Egress, netlink)?)
                })?;
                // It goes with its namespace: dropped here, it would be looked for in this one.
                std::mem::forget(program.take_link(link)?);
            }
        }
        Ok(Self {
            rules: ebpf.take_map("TB_RULES").context("no map TB_RULES")?.try_into()?,
            tally: ebpf.take_map("TB_TALLY").context("no map TB_TALLY")?.try_into()?,
            seen: ebpf.take_map("TB_SEEN").context("no map TB_SEEN")?.try_into()?,
            _ebpf: ebpf,
        })
    }

    /// Replaces all rules; numbers and tallies start again.
    pub fn rules(&mut self, rules: &[Rule]) -> Result<()> {
        assert!(rules.len() <= rule::RULES as usize, "there is room for {} rules", rule::RULES);
        for i in 0..rule::RULES {
            self.rules.set(i, Rule::ANY, 0)?;
            self.tally.set(i, Tally::default(), 0)?;
        }
        for (i, rule) in rules.iter().enumerate() {
            self.rules.set(i as u32, rule, 0)?;
        }
        Ok(())
    }

    /// What became of rule number `i`.
    pub fn tally(&self, i: u32) -> Result<Tally> {
        Ok(self.tally.get(&i, 0)?)
    }

    /// What arrived; all zero at egress.
    pub fn seen(&self) -> Result<Seen> {
        Ok(self.seen.get(&0, 0)?)
    }
}
