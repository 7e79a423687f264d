//! Network cards of a machine, and the wires between them: tap devices joined by bridges, in a network namespace that goes
//! with the machine. So frames pass real drivers with real queues and offloads, and end in the same machine.
//!
//! tests/tests/machine/cards.rs finds the cards by their MAC addresses.

use crate::process::ip;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

/// Receive and transmit queues of a card that has several.
const QUEUES: u32 = 4;

/// A card: on which wire it is, of which model, and the last byte of its MAC address.
struct Card {
    wire: u32,
    model: Model,
    number: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Model {
    /// With several queues, and a driver that runs XDP programs.
    Virtio,
    /// Whatever the kernel has a driver for, of those that qemu emulates.
    Other,
}

/// The first wire is the clients', the second the backends'. The balancer has two cards at each.
const CARDS: [Card; 7] = [
    Card { wire: 0, model: Model::Virtio, number: 0x01 },
    Card { wire: 1, model: Model::Virtio, number: 0x02 },
    Card { wire: 1, model: Model::Virtio, number: 0x03 },
    Card { wire: 0, model: Model::Virtio, number: 0x10 },
    Card { wire: 1, model: Model::Virtio, number: 0x11 },
    Card { wire: 0, model: Model::Other, number: 0x20 },
    Card { wire: 1, model: Model::Other, number: 0x21 },
];

/// The wires, laid.
pub(crate) struct Wires {
    netns: Arc<File>,
    other: &'static str,
}

impl Wires {
    /// Lays them. `has_module` tells whether the kernel of the machine has a module.
    pub(crate) fn lay(has_module: impl Fn(&str) -> bool) -> Result<Self> {
        let mut lines = Vec::new();
        for wire in 0..=1 {
            lines.push(format!(
                "link add wire{wire} mtu 9000 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            ));
            lines.push(format!("link set wire{wire} up"));
        }
        for Card { wire, model, number } in &CARDS {
            let queues = if *model == Model::Virtio { " multi_queue" } else { "" };
            lines.push(format!("tuntap add dev tap{number} mode tap{queues}"));
            lines.push(format!("link set tap{number} mtu 9000 master wire{wire} up"));
        }
        // A thread of its own, which ends in the namespace: a thread cannot be given back.
        let lay = || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            // Nobody but the machine is to speak on the wires.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
            ip(&lines.join("\n"))?;
            File::open("/proc/thread-self/ns/net").context("opening a network namespace")
        };
        let netns =
            std::thread::scope(|scope| scope.spawn(lay).join().expect("laying wires does not panic"))?;
        // Cards without XDP in their drivers first.
        let other = ["e1000e", "vmxnet3"].into_iter().find(|name| has_module(name)).unwrap_or("vmxnet3");
        Ok(Self { netns: Arc::new(netns), other })
    }

    /// Puts cards into a machine that is to be started.
    pub(crate) fn plug_in(&self, qemu: &mut Command) {
        for Card { model, number, .. } in &CARDS {
            let mac = format!("02:4c:42:00:00:{number:02x}");
            let (queues, device) = match model {
                // Two interrupts a queue, one for its configuration, one for control.
                Model::Virtio => (
                    format!(",queues={QUEUES}"),
                    format!("virtio-net-pci,mq=on,vectors={},romfile=", 2 * QUEUES + 2),
                ),
                Model::Other => (String::new(), format!("{},romfile=", self.other)),
            };
            qemu.arg("-netdev").arg(format!(
                "tap,id=net{number},ifname=tap{number},script=no,downscript=no,vhost=off{queues}"
            ));
            qemu.arg("-device").arg(format!("{device},netdev=net{number},mac={mac}"));
        }
        let netns = Arc::clone(&self.netns);
        let enter = move || Ok(setns(&*netns, CloneFlags::CLONE_NEWNET)?);
        // SAFETY: one system call, no allocation, no lock.
        unsafe { qemu.pre_exec(enter) };
    }
}
