//! A client that is far away: a namespace behind the town's client, and between them a wire on which every packet takes its time.
//!
//! The wire is a pair of TUN devices and a thread that carries packets from one to the other: the kernels that the tests run on
//! need not have a queueing discipline that delays.

use crate::netns::Netns;
use crate::topology::Topology;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// See the module.
pub struct Far {
    /// Where the client runs.
    pub netns: Netns,
    stop: Arc<AtomicBool>,
    wire: Option<JoinHandle<Result<()>>>,
}

impl Far {
    /// Puts a client behind the town's own, `one_way` away from it.
    pub fn behind(town: &Topology, one_way: Duration) -> Result<Self> {
        let near = &town.client.netns;
        let netns = Netns::new("far client")?;
        netns.sysctl("ipv6/conf/all/disable_ipv6", 1)?;
        let ends = [tun(&netns, "far")?, tun(near, "near")?];
        netns.ip(&["addr add 10.0.77.2/24 dev far", "link set far up", "route add default via 10.0.77.1"])?;
        near.ip(&["addr add 10.0.77.1/24 dev near", "link set near up"])?;
        near.sysctl("ipv4/ip_forward", 1)?;
        // For connections without the balancer.
        town.balancer.ip(&[&format!("route add 10.0.77.0/24 via {}", town.client.ip)])?;
        let stop = Arc::new(AtomicBool::new(false));
        let wire = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || carry(&ends, one_way, &stop)
        });
        Ok(Self { netns, stop, wire: Some(wire) })
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(Err(error)) = self.wire.take().map(|wire| wire.join().expect("the wire does not panic")) {
            eprintln!("the wire to the far client: {error:#}");
        }
    }
}

/// A TUN device in a namespace: one IP packet a read or write, checksums complete.
fn tun(netns: &Netns, name: &str) -> Result<File> {
    // _IOW('T', 202, int), IFF_TUN | IFF_NO_PI.
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const FLAGS: i16 = 0x0001 | 0x1000;
    netns
        .run(|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")?;
            let mut request = [0_u8; 40];
            request[..name.len()].copy_from_slice(name.as_bytes());
            request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
            // SAFETY: the request is as large as `struct ifreq`, and the descriptor is open.
            let outcome = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
            if outcome < 0 { Err(std::io::Error::last_os_error()) } else { Ok(file) }
        })
        .with_context(|| format!("making TUN device {name}"))
}

/// A packet and when it arrives at which end.
type Travelling = VecDeque<(Instant, Vec<u8>)>;

/// Carries packets until it is told to stop.
fn carry(ends: &[File; 2], one_way: Duration, stop: &AtomicBool) -> Result<()> {
    const LOOK_UP: Duration = Duration::from_millis(20);
    let mut travelling: [Travelling; 2] = [Travelling::new(), Travelling::new()];
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::SeqCst) {
        let next = travelling.iter().filter_map(|queue| Some(queue.front()?.0)).min();
        let wait = next.map_or(LOOK_UP, |next| next.saturating_duration_since(Instant::now()).min(LOOK_UP));
        let mut polled = ends.each_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut polled, Some(TimeSpec::from_duration(wait)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for packets"),
        }
        for (from, queue) in travelling.iter_mut().enumerate() {
            loop {
                match (&ends[from]).read(&mut buffer) {
                    Ok(len) => queue.push_back((Instant::now() + one_way, buffer[..len].to_vec())),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("reading a packet"),
                }
            }
            while queue.front().is_some_and(|(due, _)| *due <= Instant::now()) {
                let (_, packet) = queue.pop_front().expect("it was just looked at");
                (&ends[1 - from]).write_all(&packet).context("writing a packet")?;
            }
        }
    }
    Ok(())
}
