//! Filters of the queueing discipline `clsact`, as `tc filter` shows them.

use super::{NetError, Rtnl};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

impl Rtnl {
    /// Whether a BPF program stands among the filters for what an interface receives, at this priority and handle.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn has_filter(&mut self, index: u32, priority: u16, handle: u32) -> Result<bool, NetError> {
        let mut message = TcMessage::default();
        message.header.family = AddressFamily::Unspec;
        message.header.index = index as i32;
        message.header.parent = TcHandle { minor: TcHandle::MIN_INGRESS, ..TcHandle::CLSACT };
        let answers = match self.list(RouteNetlinkMessage::GetTrafficFilter(message)) {
            Ok(answers) => answers,
            // There is no such queueing discipline, and so no filter of it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) || super::rtnl::is_absent(&error) => {
                return Ok(false);
            }
            Err(error) => {
                return Err(NetError::kernel(format!("cannot list the filters of interface {index}"))(error));
            }
        };
        Ok(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => {
                filter.header.index == index as i32
                    // The protocol is in the low half.
                    && filter.header.info >> 16 == u32::from(priority)
                    && u32::from(filter.header.handle) == handle
                    && filter.attributes.contains(&TcAttribute::Kind("bpf".to_owned()))
            }
            _ => false,
        }))
    }
}
