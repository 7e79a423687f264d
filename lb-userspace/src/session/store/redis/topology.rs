//! Which server has which slots: what the nodes of a cluster say, and what redirections taught since.

use super::keys::SLOTS;
use super::link::text;
use super::options::Addr;
use redis::Value;
use std::collections::{BTreeSet, HashMap};

/// A primary and its replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shard {
    /// Names it, whoever is its primary.
    pub(super) first: u16,
    pub(super) primary: Addr,
    pub(super) replicas: usize,
}

/// The servers and their slots.
#[derive(Clone, Default, Debug)]
pub(super) struct Topology {
    /// First slot, last slot, primary.
    ranges: Vec<(u16, u16, Addr)>,
    /// Later than the ranges.
    moved: HashMap<u16, Addr>,
    /// Sorted by their first slots.
    pub(super) shards: Vec<Shard>,
    /// Everyone who may know, replicas included.
    pub(super) nodes: BTreeSet<Addr>,
}

impl Topology {
    /// One server that has everything.
    pub(super) fn single(addr: Addr) -> Self {
        let mut topology = Self::default();
        topology.add(0, SLOTS - 1, addr, &[]);
        topology
    }

    /// The answer to CLUSTER SLOTS by a node.
    pub(super) fn parse(slots: &Value, asked: &Addr) -> Option<Self> {
        let Value::Array(ranges) = slots else { return None };
        let mut topology = Self::default();
        for range in ranges {
            let Value::Array(range) = range else { return None };
            let [Value::Int(first), Value::Int(last), nodes @ ..] = range.as_slice() else { return None };
            let nodes: Vec<Addr> = nodes.iter().map(|node| parse_node(node, asked)).collect::<Option<_>>()?;
            let (primary, replicas) = nodes.split_first()?;
            let (first, last) = (slot(*first)?, slot(*last).filter(|to| i64::from(*to) >= *first)?);
            topology.add(first, last, primary.clone(), replicas);
        }
        topology.shards.sort_by_key(|shard| shard.first);
        Some(topology)
    }

    fn add(&mut self, first: u16, last: u16, primary: Addr, replicas: &[Addr]) {
        match self.shards.iter_mut().find(|shard| shard.primary == primary) {
            Some(shard) => shard.first = shard.first.min(first),
            None => self.shards.push(Shard { first, primary: primary.clone(), replicas: replicas.len() }),
        }
        self.nodes.extend(replicas.iter().cloned());
        self.nodes.insert(primary.clone());
        self.ranges.push((first, last, primary));
    }

    /// Slots that somebody serves.
    pub(super) fn covered(&self) -> usize {
        self.ranges.iter().map(|(first, last, _)| usize::from(last - first) + 1).sum()
    }

    pub(super) fn primary(&self, slot: u16) -> Option<&Addr> {
        let range = || self.ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        self.moved.get(&slot).or_else(|| range().map(|(.., addr)| addr))
    }

    /// What a redirection said.
    pub(super) fn learn(&mut self, slot: u16, addr: Addr) {
        self.nodes.insert(addr.clone());
        self.moved.insert(slot, addr);
    }
}

fn slot(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|slot| *slot < SLOTS)
}

/// A node that does not know its own address has the one that it was asked at.
fn parse_node(node: &Value, asked: &Addr) -> Option<Addr> {
    let Value::Array(node) = node else { return None };
    let [host, Value::Int(port), ..] = node.as_slice() else { return None };
    let host = match text(host) {
        host if host.is_empty() || host == "?" => asked.host.clone(),
        host => host,
    };
    Some(Addr { host, port: u16::try_from(*port).ok()? })
}

/// Where MOVED or ASK sends to: `slot host:port`.
pub(super) fn redirection(details: &str, asked: &Addr) -> Option<Addr> {
    let (host, port) = details.split_whitespace().nth(1)?.rsplit_once(':')?;
    let host = if host.is_empty() { &asked.host } else { host };
    Some(Addr { host: host.to_owned(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(host: &str, port: u16) -> Addr {
        Addr { host: host.into(), port }
    }

    fn node(host: &str, port: i64) -> Value {
        Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString("id".into())])
    }

    #[test]
    fn slots_are_found_at_the_primary_that_has_them() {
        let range = |first, last, nodes: &[Value]| {
            Value::Array([&[Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let said = Value::Array(vec![
            range(8192, 16383, &[node("", 2), node("c", 3)]),
            range(0, 99, &[node("a", 1)]),
            range(200, 8191, &[node("a", 1)]),
        ]);
        let mut topology = Topology::parse(&said, &addr("asked", 9)).unwrap();
        let shard = |first, primary, replicas| Shard { first, primary, replicas };
        assert_eq!(topology.shards, [shard(0, addr("a", 1), 0), shard(8192, addr("asked", 2), 1)]);
        assert_eq!(topology.covered(), 16_284);
        assert_eq!(topology.primary(200), Some(&addr("a", 1)));
        assert_eq!(topology.primary(100), None);
        assert_eq!(topology.nodes.len(), 3);
        topology.learn(200, addr("b", 4));
        assert_eq!(topology.primary(200), Some(&addr("b", 4)));
        for (first, last) in [(0, 16384), (-1, 5), (7, 6)] {
            let odd = Value::Array(vec![range(first, last, &[node("a", 1)])]);
            assert!(Topology::parse(&odd, &addr("a", 1)).is_none(), "{first}..={last}");
        }
    }

    #[test]
    fn redirections_are_followed() {
        let asked = addr("asked", 9);
        assert_eq!(redirection("3999 127.0.0.1:6381", &asked), Some(addr("127.0.0.1", 6381)));
        assert_eq!(redirection("3999 ::1:6381", &asked), Some(addr("::1", 6381)));
        assert_eq!(redirection("3999 :6381", &asked), Some(addr("asked", 6381)));
        assert_eq!(redirection("3999", &asked), None);
    }
}
