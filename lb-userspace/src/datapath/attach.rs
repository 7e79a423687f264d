//! Puts the programs on interfaces through pinned links, so that they stay when the daemon goes, and replaces them
//! through the same links, so that no packet meets an interface without its program.

use super::error::DatapathError;
use super::load::program;
use super::pins::{Hook, Pins};
use super::{JOINT, Mode, XDP, sys};
use crate::net::{Link, Rtnl};
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode, tc};
use std::path::Path;

/// How the joint is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JointHook {
    /// By a TCX link.
    Tcx,
    /// As a filter of the queueing discipline `clsact`.
    Clsact,
}

impl JointHook {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// One interface that carries the programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attached {
    pub ifindex: u32,
    pub mode: Mode,
    pub joint: JointHook,
}

/// What attaching needs.
pub(super) struct Attacher<'a> {
    pub(super) ebpf: &'a mut Ebpf,
    pub(super) pins: &'a Pins,
    pub(super) object: &'a Path,
    pub(super) mode: Mode,
    /// Whether to try TCX links. Where the kernel has none, that was said at start.
    pub(super) tcx: bool,
}

/// Where the joint's filter stands on kernels without TCX links ("lb" in ASCII: nobody else's place).
const FILTER: NlOptions = NlOptions { priority: 0x6c62, handle: TcHandle::new(0, 1), classid: None };

impl Attacher<'_> {
    /// Attaches both programs, through the links of an earlier daemon where they still hold.
    pub(super) fn attach(&mut self, link: &Link) -> Result<Attached, DatapathError> {
        // The joint first: nothing goes up to it before the XDP program is there.
        let joint = self.attach_joint(link)?;
        let mode = self.attach_xdp(link)?;
        Ok(Attached { ifindex: link.index, mode, joint })
    }

    fn attach_xdp(&mut self, link: &Link) -> Result<Mode, DatapathError> {
        let attached = link.xdp;
        let wanted = |generic: bool| match self.mode {
            Mode::Auto => true,
            Mode::Driver => !generic,
            Mode::Generic => generic,
        };
        let keep = |info: sys::LinkInfo| {
            // The program must be on this very interface: another namespace has interfaces of the same index.
            attached.is_some_and(|xdp| xdp.program_id == info.program_id && wanted(xdp.generic))
        };
        let pin = self.pins.link(&link.name, Hook::Xdp);
        if let Some(held) = self.inherit(link, Hook::Xdp, keep)? {
            let xdp: &mut Xdp = program(self.ebpf, self.object, XDP)?;
            let updated = replace_xdp(xdp, held).map_err(fails(link, XDP))?;
            self.pin(updated, &pin)?;
            let generic = attached.is_some_and(|xdp| xdp.generic);
            return Ok(if generic { Mode::Generic } else { Mode::Driver });
        }
        // What is there now and was not ours a moment ago is somebody else's.
        if let Some(xdp) = Rtnl::open()?.link_at(link.index)?.and_then(|now| now.xdp) {
            return Err(DatapathError::ForeignXdp { interface: link.name.clone(), program: xdp.program_id });
        }
        let (made, mode) = match self.mode {
            Mode::Driver => (self.create_xdp(link, XdpMode::Driver)?, Mode::Driver),
            Mode::Generic => (self.create_xdp(link, XdpMode::Skb)?, Mode::Generic),
            Mode::Auto => match self.create_xdp(link, XdpMode::Driver) {
                Ok(made) => (made, Mode::Driver),
                Err(reason) => {
                    let made = self.create_xdp(link, XdpMode::Skb)?;
                    tracing::warn!(
                        interface = link.name, %reason,
                        "the driver cannot run XDP programs: attached in generic mode, which is slower"
                    );
                    (made, Mode::Generic)
                }
            },
        };
        self.pin(made, &pin)?;
        Ok(mode)
    }

    fn create_xdp(&mut self, link: &Link, mode: XdpMode) -> Result<FdLink, DatapathError> {
        let xdp: &mut Xdp = program(self.ebpf, self.object, XDP)?;
        create_xdp(xdp, link.index, mode).map_err(fails(link, XDP)).map_err(|mut error| {
            if let DatapathError::Attach { reason, .. } = &mut error
                && mode == XdpMode::Driver
            {
                reason.push_str(&large_frames(link));
            }
            error
        })
    }

    fn attach_joint(&mut self, link: &Link) -> Result<JointHook, DatapathError> {
        let pin = self.pins.link(&link.name, Hook::Tc);
        let held = self.inherit(link, Hook::Tc, |_| true)?;
        let joint: &mut SchedClassifier = program(self.ebpf, self.object, JOINT)?;
        if let Some(held) = held {
            let updated = replace_joint(joint, held).map_err(fails(link, JOINT))?;
            self.pin(updated, &pin)?;
            return Ok(JointHook::Tcx);
        }
        let refused = match self.tcx.then(|| create_joint(joint, &link.name)) {
            Some(Ok(made)) => {
                self.pin(made, &pin)?;
                return Ok(JointHook::Tcx);
            }
            Some(Err(reason)) => Some(reason),
            None => None,
        };
        attach_filter(joint, &link.name).map_err(fails(link, JOINT))?;
        if let Some(reason) = refused {
            tracing::warn!(
                interface = link.name, %reason,
                "no TCX link could be made: attached the joint as a filter of clsact instead"
            );
        }
        Ok(JointHook::Clsact)
    }

    /// The pinned link that holds this interface, if there is one to `keep`. Pins of links that hold nothing any more,
    /// or not what we want, are removed, and with them their links. The link returned may be pinned under an older
    /// layout; [`Attacher::pin`] moves it.
    fn inherit(
        &self,
        link: &Link,
        hook: Hook,
        keep: impl Fn(sys::LinkInfo) -> bool,
    ) -> Result<Option<FdLink>, DatapathError> {
        let mut held = None;
        for pin in self.pins.links_of(&link.name, hook) {
            let shown = || format!("cannot take over link {}", self.pins.show(&pin).display());
            let info = sys::link_info(&pin).map_err(DatapathError::system(shown()))?;
            if held.is_none() && info.ifindex == link.index && keep(info) {
                let pinned = PinnedLink::from_pin(&pin).map_err(DatapathError::system(shown()))?;
                held = Some(FdLink::from(pinned));
            } else {
                tracing::info!(interface = link.name, link = %self.pins.show(&pin).display(), "removed a stale link");
                self.pins.remove_link(&pin)?;
            }
        }
        Ok(held)
    }

    /// Pins a link where it belongs, unless it is there already.
    fn pin(&self, link: FdLink, pin: &Path) -> Result<(), DatapathError> {
        if pin.exists() {
            return Ok(());
        }
        let what = format!("cannot pin link {}", self.pins.show(pin).display());
        // What is returned may go: the pin holds the link.
        link.pin(pin).map(drop).map_err(DatapathError::system(what))
    }
}

/// Largest MTU with which a frame, and the room that XDP wants around it, fit in a page of 4 KiB everywhere.
const ONE_PAGE: u32 = 3_400;

/// What may be behind a driver's "invalid argument".
fn large_frames(link: &Link) -> String {
    if link.mtu <= ONE_PAGE {
        return String::new();
    }
    format!(
        "; its MTU is {}, and many drivers want a frame in one page: `ip link set {} mtu {ONE_PAGE}` may help",
        link.mtu, link.name
    )
}

fn create_xdp(xdp: &mut Xdp, ifindex: u32, mode: XdpMode) -> Result<FdLink, Reason> {
    let id = xdp.attach_to_if_index(ifindex, mode)?;
    Ok(xdp.take_link(id)?.try_into()?)
}

fn replace_xdp(xdp: &mut Xdp, held: FdLink) -> Result<FdLink, Reason> {
    let id = xdp.attach_to_link(held.try_into()?)?;
    Ok(xdp.take_link(id)?.try_into()?)
}

fn replace_joint(joint: &mut SchedClassifier, held: FdLink) -> Result<FdLink, Reason> {
    let id = joint.attach_to_link(held.try_into()?)?;
    Ok(joint.take_link(id)?.try_into()?)
}

fn create_joint(joint: &mut SchedClassifier, interface: &str) -> Result<FdLink, Reason> {
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = joint.attach_with_options(interface, TcAttachType::Ingress, first)?;
    Ok(joint.take_link(id)?.try_into()?)
}

/// As a filter of the `clsact` queueing discipline. Filters stay until they are removed.
fn attach_filter(joint: &mut SchedClassifier, interface: &str) -> Result<(), Reason> {
    let NlOptions { priority, handle, classid } = FILTER;
    let present = SchedClassifierLink::attached(interface, TcAttachType::Ingress, priority, handle, classid)?;
    let id = match joint.attach_to_link(present) {
        Ok(id) => id,
        Err(_) => {
            // It may be there for another's sake; whether it is, the filter will tell.
            if let Err(error) = tc::qdisc_add_clsact(interface) {
                tracing::debug!(interface, %error, "no clsact queueing discipline added");
            }
            joint.attach_with_options(interface, TcAttachType::Ingress, TcAttachOptions::Netlink(FILTER))?
        }
    };
    // Dropping it would remove the filter.
    std::mem::forget(joint.take_link(id)?);
    Ok(())
}

/// Which of the two programs an interface lacks that should carry both; `None`: neither.
pub(super) fn missing(
    rtnl: &mut Rtnl,
    pins: &Pins,
    link: &Link,
    attached: &Attached,
    xdp: u32,
) -> Result<Option<&'static str>, DatapathError> {
    if attached.ifindex != link.index || link.xdp.is_none_or(|found| found.program_id != xdp) {
        return Ok(Some(XDP));
    }
    let holds = match attached.joint {
        JointHook::Tcx => {
            let pin = pins.link(&link.name, Hook::Tc);
            // A link that was detached by force stays, and holds nothing.
            sys::link_info(&pin).is_ok_and(|info| info.ifindex == link.index)
        }
        JointHook::Clsact => rtnl.has_filter(link.index, FILTER.priority, FILTER.handle.into())?,
    };
    Ok((!holds).then_some(JOINT))
}

/// Removes the joint's filter from an interface; fine when there is none.
pub(super) fn detach_filter(interface: &str) {
    if let Err(error) = tc::qdisc_detach_program(interface, TcAttachType::Ingress, JOINT) {
        tracing::debug!(interface, %error, "no filter removed");
    }
}

type Reason = Box<dyn std::error::Error + Send + Sync>;

fn fails(link: &Link, program: &'static str) -> impl FnOnce(Reason) -> DatapathError {
    let interface = link.name.clone();
    move |error| {
        // The kernel's reason is at the end of the chain; what stands before names system calls.
        let mut reason: &dyn std::error::Error = &*error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        DatapathError::Attach { interface, program, reason: reason.to_string() }
    }
}
