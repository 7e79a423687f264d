//! Features of network drivers, as `ethtool -K` switches them.

use super::NetError;
use super::links::MAX_NAME;
use std::io;
use std::os::fd::AsRawFd;

/// A feature that can be switched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// Checksums filled in by the hardware. On veth they are never filled in at all.
    TxChecksum,
    /// Packets beyond the MTU cut by the hardware.
    TcpSegmentation,
    /// Packets merged on reception. On veth it also makes the interface poll its ring, without which frames redirected
    /// to it by XDP lie there unseen.
    ReceiveOffload,
    /// VLAN tags taken off by the hardware, and told beside the frame.
    VlanReceive,
}

impl Feature {
    /// Numbers of the ethtool commands that read and write it (`linux/ethtool.h`).
    const fn commands(self) -> (u32, u32) {
        match self {
            Self::TxChecksum => (0x16, 0x17),
            Self::TcpSegmentation => (0x1e, 0x1f),
            Self::ReceiveOffload => (0x2b, 0x2c),
            Self::VlanReceive => (0x25, 0x26),
        }
    }
    /// The bit that stands for it in what the command reads and writes (`ETH_FLAG_RXVLAN`), where it is one of several.
    const fn bit(self) -> Option<u32> {
        match self {
            Self::VlanReceive => Some(1 << 8),
            _ => None,
        }
    }
    const fn name(self) -> &'static str {
        match self {
            Self::TxChecksum => "tx",
            Self::TcpSegmentation => "tso",
            Self::ReceiveOffload => "gro",
            Self::VlanReceive => "rxvlan",
        }
    }
}

/// Whether a feature of an interface is on.
///
/// # Errors
/// No such interface, or its driver does not know.
pub fn is_on(interface: &str, feature: Feature) -> Result<bool, NetError> {
    let value = command(interface, feature.commands().0, 0)
        .map_err(NetError::kernel(format!("cannot read {} of {interface}", feature.name())))?;
    Ok(feature.bit().map_or(value, |bit| value & bit) != 0)
}

/// Switches a feature. Fine when it stands so already, even where the driver does not let it be switched: XDP on one end
/// of a veth takes segmentation from the other.
///
/// # Errors
/// No such interface, or its driver cannot.
pub fn switch(interface: &str, feature: Feature, on: bool) -> Result<(), NetError> {
    if is_on(interface, feature)? == on {
        return Ok(());
    }
    let state = if on { "on" } else { "off" };
    let write = || {
        let value = match feature.bit() {
            None => on.into(),
            Some(bit) => {
                let others = command(interface, feature.commands().0, 0)? & !bit;
                if on { others | bit } else { others }
            }
        };
        command(interface, feature.commands().1, value).map(|_| ())
    };
    write().map_err(NetError::kernel(format!("cannot switch {} of {interface} {state}", feature.name())))
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` with a pointer in its union, which is larger than a pointer.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: *mut Value,
    room: [u64; 2],
}

fn command(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    if interface.len() > MAX_NAME {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let mut name = [0; libc::IFNAMSIZ];
    name[..interface.len()].copy_from_slice(interface.as_bytes());
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut value = Value { command, data };
    let mut request = Request { name, value: &raw mut value, room: [0; 2] };
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    // SAFETY: the request and the value it points to are valid for reads and writes and of the layout that this ioctl
    // documents; the kernel keeps neither.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
