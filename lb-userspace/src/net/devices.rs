//! What devices do to frames behind XDP's back: checksums that nobody fills in, frames that were merged, tags that are taken off,
//! rings that nobody polls. Either it is switched off, or it is said with the command that helps.

use super::ethtool::{self, Feature};
use super::peer::{FarEnd, Search, far_end};
use super::{Link, NetError, Rtnl, netdev};

/// An interface that carries the programs.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: String,
    /// Run by the kernel's stack instead of the driver.
    pub generic: bool,
}

/// What to do about it, and how far to look for other ends.
#[derive(Clone, Copy, Debug)]
pub struct Care {
    /// Switch features; else only say so.
    pub set: bool,
    pub search: Search,
}

/// Whether frames that XDP programs in drivers redirect to an interface can ever arrive; to be asked once it carries the programs. Of a veth that depends on its other end,
/// and can be mended.
///
/// # Errors
/// The kernel does not answer.
pub fn can_take_redirected(link: &Link) -> Result<bool, NetError> {
    if link.kind == "veth" {
        return Ok(true);
    }
    let told = netdev::takes_redirected(link.index)
        .map_err(NetError::kernel(format!("cannot ask for the XDP features of {}", link.name)))?;
    // A driver that cannot run programs cannot take frames from them, as far as is known.
    Ok(told.unwrap_or(link.xdp.is_some_and(|xdp| !xdp.generic)))
}

/// Looks at all interfaces. Returns what is wrong and was not mended, one sentence each.
///
/// # Errors
/// The kernel does not answer.
pub fn tend(ports: &[Port], care: Care) -> Result<Vec<String>, NetError> {
    let mut rtnl = Rtnl::open()?;
    let links = rtnl.links()?;
    let any_in_driver = ports.iter().any(|port| !port.generic);
    let mut wrong = Vec::new();
    for port in ports {
        let Some(link) = links.iter().find(|link| link.name == port.name) else { continue };
        if link.kind.is_empty() {
            tags(link, care, &mut wrong);
        }
        if link.kind == "veth" {
            veth(&mut rtnl, link, care, any_in_driver, &mut wrong)?;
        }
        if port.generic {
            for below in beneath(&links, link) {
                merged(&port.name, below, care, &mut wrong);
                if below.kind == "veth" {
                    veth(&mut rtnl, below, care, false, &mut wrong)?;
                }
            }
        }
    }
    Ok(wrong)
}

/// The devices that a device is made of: ports of a bridge, members of a bond, the parent of a VLAN, and theirs.
fn beneath<'a>(links: &'a [Link], link: &Link) -> Vec<&'a Link> {
    let mut found: Vec<&Link> = Vec::new();
    let mut open = vec![(link.index, link.lower)];
    while let Some((index, lower)) = open.pop() {
        for below in links.iter().filter(|below| below.master == Some(index) || lower == Some(below.index)) {
            if found.iter().all(|known| known.index != below.index) {
                found.push(below);
                open.push((below.index, below.lower));
            }
        }
    }
    found
}

/// Merged frames are longer than any MTU, so they cannot be redirected.
fn merged(port: &str, below: &Link, care: Care, wrong: &mut Vec<String>) {
    // What does not know the feature does not merge.
    if !ethtool::is_on(&below.name, Feature::ReceiveOffload).unwrap_or(false) {
        return;
    }
    let why = format!(
        "{port} runs the programs in generic mode, and {} merges frames before they arrive there",
        below.name
    );
    if care.set && ethtool::switch(&below.name, Feature::ReceiveOffload, false).is_ok() {
        return tracing::warn!("{why}: switched that off (gro)");
    }
    wrong.push(format!("{why}, which cannot be redirected then: `ethtool -K {} gro off`", below.name));
}

/// A tag that the card has taken off is not seen: a frame of any VLAN would pass for an untagged one.
fn tags(link: &Link, care: Care, wrong: &mut Vec<String>) {
    if !ethtool::is_on(&link.name, Feature::VlanReceive).unwrap_or(false) {
        return;
    }
    let why = format!(
        "{} takes VLAN tags off, so that frames of every VLAN would be taken for untagged ones",
        link.name
    );
    if care.set && ethtool::switch(&link.name, Feature::VlanReceive, false).is_ok() {
        return tracing::warn!("{why}: switched that off (rxvlan)");
    }
    wrong.push(format!("{why}: `ethtool -K {} rxvlan off`", link.name));
}

/// The other end of a veth: it must fill in checksums itself, and poll its ring where frames are redirected to it.
fn veth(
    rtnl: &mut Rtnl,
    link: &Link,
    care: Care,
    redirected: bool,
    wrong: &mut Vec<String>,
) -> Result<(), NetError> {
    let takes = || {
        let told = netdev::takes_redirected(link.index);
        told.map_err(NetError::kernel(format!("cannot ask for the XDP features of {}", link.name)))
    };
    let Some(end) = far_end(rtnl, link, care.search)? else {
        if redirected && link.running && takes()? == Some(false) {
            wrong.push(format!(
                "frames redirected to {} are lost: at its other end, in a network namespace that is not found, `ethtool -K \
                 DEVICE gro off` and then `ethtool -K DEVICE gro on tx off`",
                link.name
            ));
        } else if care.search == Search::Thorough {
            tracing::warn!(
                interface = link.name,
                "the network namespace of this veth's other end is not found; unless checksum offload is off there \
                 (`ethtool -K DEVICE tx off`), its connections hang"
            );
        }
        return Ok(());
    };
    let FarEnd { name, .. } = &end;
    if end.tx_checksum {
        let why = format!("{name}, the other end of {}, sends frames without checksums", link.name);
        if care.set && end.switch(Feature::TxChecksum, false).is_ok() {
            tracing::warn!("{why}: switched checksum offload off there (`{}`)", end.command("tx off"));
        } else {
            wrong.push(format!("{why}, so that its connections hang: `{}`", end.command("tx off")));
        }
    }
    if !redirected || !end.up || (end.polls && takes()? != Some(false)) {
        return Ok(());
    }
    let why = format!("{name}, the other end of {}, does not take redirected frames", link.name);
    // Where GRO was on before the end came up, the kernel has not taken note.
    let set = || {
        end.switch(Feature::ReceiveOffload, false).and_then(|()| end.switch(Feature::ReceiveOffload, true))
    };
    if care.set && set().is_ok() && takes()? != Some(false) {
        tracing::warn!("{why}: switched GRO off and on there");
    } else {
        wrong.push(format!("{why}: `{}`, then `{}`", end.command("gro off"), end.command("gro on")));
    }
    Ok(())
}
