//! What a device says of XDP: the generic netlink family `netdev` (Documentation/netlink/specs/netdev.yaml, Linux 6.3).

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use std::io;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// Takes frames that XDP programs redirect to it.
const NDO_XMIT: u64 = 1 << 2;
/// Bytes of a netlink header, and of it with a generic one.
const HEADER: usize = 16;
const GENERIC: usize = HEADER + 4;

/// Whether a device takes frames that XDP programs in drivers redirect to it; `None` where the kernel does not tell.
///
/// # Errors
/// The kernel does not answer.
pub(super) fn takes_redirected(index: u32) -> io::Result<Option<bool>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let named = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = match ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &named) {
        // A kernel before 6.3.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        answer => {
            find(&answer?, CTRL_ATTR_FAMILY_ID).and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)))
        }
    };
    let Some(family) = family else { return Ok(None) };
    let answer =
        ask(&socket, family, NETDEV_CMD_DEV_GET, &attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes()))?;
    let features = find(&answer, NETDEV_A_DEV_XDP_FEATURES);
    let features = features.and_then(|bits| Some(u64::from_ne_bytes(bits.try_into().ok()?)));
    Ok(features.map(|bits| bits & NDO_XMIT != 0))
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Asks one question; returns the attributes of the answer.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let mut message = ((GENERIC + attributes.len()) as u32).to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence number, port; command, version.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    socket.send(&message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let word = |at: usize| answer.get(at..at + 4).and_then(|word| word.try_into().ok());
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    if kind == Some(libc::NLMSG_ERROR as u16) {
        let code = word(HEADER).map_or(0, i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
    }
    Ok(answer.get(GENERIC..).unwrap_or_default().to_vec())
}

/// The value of an attribute.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_what_is_cut_off_is_not() {
        let both = [attribute(2, b"netdev\0"), attribute(3, &7_u64.to_ne_bytes())].concat();
        assert_eq!(find(&both, 2), Some(&b"netdev\0"[..]));
        assert_eq!(find(&both, 3), Some(&7_u64.to_ne_bytes()[..]));
        assert_eq!(find(&both, 4), None);
        assert_eq!(find(&both[..both.len() - 1], 3), None);
    }
}
