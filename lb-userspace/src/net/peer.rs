//! The other end of a veth: where it is, and whether frames pass between it and XDP. A frame that XDP redirects to a veth lands in a
//! ring that the other end polls only when it has an XDP program or GRO; otherwise it is lost. And what the other end sends has
//! no checksums as long as it leaves them to "hardware", which on a veth is nobody.

use super::ethtool::{self, Feature};
use super::netns::Netns;
use super::{Link, NetError, Rtnl};
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is known of the other end of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Not a veth: a driver's own business.
    NotVeth,
    /// It polls its ring.
    Receives,
    /// It does not: redirected frames vanish.
    Ignores,
    /// It is in a namespace that is not found.
    OutOfSight,
}

/// How far to look for a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Search {
    /// Names and processes.
    Quick,
    /// Also mounts and open files of all processes: a namespace may have nothing else. Takes up to a second on large hosts.
    Thorough,
}

/// The other end of a veth pair.
#[derive(Debug)]
pub struct FarEnd {
    pub name: String,
    pub up: bool,
    /// It has an XDP program or GRO.
    pub polls: bool,
    /// Whether it leaves checksums to hardware.
    pub tx_checksum: bool,
    place: Place,
}

/// A network namespace, and what stands before a command that is to run there.
#[derive(Debug)]
struct Place {
    /// None: the calling thread's own.
    file: Option<File>,
    before: String,
}

impl FarEnd {
    /// The command that switches features of it, such as `tx off`.
    pub fn command(&self, features: &str) -> String {
        format!("{}ethtool -K {} {features}", self.place.before, self.name)
    }

    /// Switches a feature of it.
    ///
    /// # Errors
    /// It is gone, or does not let itself be switched.
    pub fn switch(&self, feature: Feature, on: bool) -> Result<(), NetError> {
        self.place.run(|| ethtool::switch(&self.name, feature, on))
    }
}

impl Place {
    fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, NetError> + Send) -> Result<T, NetError> {
        let Some(file) = &self.file else { return work() };
        std::thread::scope(|scope| {
            let inside = || {
                setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| {
                    NetError::kernel("cannot enter the network namespace of a veth's other end")(error.into())
                })?;
                work()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Looks at the other end of a veth pair.
///
/// # Errors
/// The kernel does not answer.
pub fn check_peer(rtnl: &mut Rtnl, link: &Link) -> Result<Peer, NetError> {
    if link.peer.is_none() {
        return Ok(Peer::NotVeth);
    }
    Ok(match far_end(rtnl, link, Search::Quick)? {
        None => Peer::OutOfSight,
        Some(end) if end.polls => Peer::Receives,
        Some(_) => Peer::Ignores,
    })
}

/// The other end of a veth; `None` when it is no veth, or its namespace is not found.
///
/// # Errors
/// The kernel does not answer.
pub fn far_end(rtnl: &mut Rtnl, link: &Link, search: Search) -> Result<Option<FarEnd>, NetError> {
    let Some((index, namespace)) = link.peer else { return Ok(None) };
    let place = match namespace {
        None => Some(Place { file: None, before: String::new() }),
        Some(id) => find(rtnl, id, search)?,
    };
    let Some(place) = place else { return Ok(None) };
    let seen = place.run(|| {
        let Some(link) = Rtnl::open()?.link_at(index)? else { return Ok(None) };
        let polls =
            link.xdp.is_some_and(|xdp| !xdp.generic) || ethtool::is_on(&link.name, Feature::ReceiveOffload)?;
        let tx_checksum = ethtool::is_on(&link.name, Feature::TxChecksum)?;
        Ok(Some((link.name, link.up, polls, tx_checksum)))
    })?;
    Ok(seen.map(|(name, up, polls, tx_checksum)| FarEnd { name, up, polls, tx_checksum, place }))
}

/// The namespace that the one of `rtnl` knows by an id.
fn find(rtnl: &mut Rtnl, id: i32, search: Search) -> Result<Option<Place>, NetError> {
    let named = Netns::list("").into_iter();
    let named = named.map(|name| (Path::new("/run/netns").join(&name), format!("ip netns exec {name} ")));
    let processes = processes().map(|process| {
        (PathBuf::from(format!("/proc/{process}/ns/net")), format!("nsenter -t {process} -n "))
    });
    let more =
        (search == Search::Thorough).then(|| mounted().into_iter().chain(held())).into_iter().flatten();
    let more = more.map(|path| (path.clone(), format!("nsenter --net={} ", path.display())));
    let mut known = BTreeSet::new();
    for (path, before) in named.chain(processes).chain(more) {
        // Whatever has ended meanwhile is not it.
        let Ok(file) = File::open(path) else { continue };
        let is_new = file.metadata().is_ok_and(|found| known.insert((found.dev(), found.ino())));
        if is_new && id_of(rtnl, &file)? == Some(id) {
            return Ok(Some(Place { file: Some(file), before }));
        }
    }
    Ok(None)
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Namespaces that are mounted somewhere, as those of containers are.
fn mounted() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_namespace = |line: &&str| line.contains(" - nsfs ") && line.contains(" net:[");
    mounts.lines().filter(is_namespace).filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect()
}

/// Namespaces that processes hold open.
fn held() -> impl Iterator<Item = PathBuf> {
    processes().flat_map(|process| {
        let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        files.map(|file| file.path()).filter(|path| {
            fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("net:["))
        })
    })
}

/// The id by which the namespace of `rtnl` knows another one.
fn id_of(rtnl: &mut Rtnl, namespace: &File) -> Result<Option<i32>, NetError> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd() as u32));
    let answer = rtnl.ask(RouteNetlinkMessage::GetNsId(message));
    let answer = match answer {
        // No namespace of the network.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        answer => answer.map_err(NetError::kernel("cannot ask for the id of a network namespace"))?,
    };
    let Some(RouteNetlinkMessage::NewNsId(answer)) = answer else { return Ok(None) };
    Ok(answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    }))
}
