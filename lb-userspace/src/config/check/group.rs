//! Services that send a client to the same host. Their tables are made of the hosts alone, so they must be made of the same
//! hosts, in the same shares.

use super::Checker;
use crate::config::{Affinity, Backend, Service};
use serde_spanned::Spanned;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The group that a service names, and where it stands in the file.
pub(super) type Group = Spanned<String>;

impl Checker<'_, '_> {
    /// Judges the groups of these services: `groups[i]` is what service `i` names.
    pub(super) fn groups(&mut self, services: &[Service], groups: &[Option<Group>]) {
        let mut first: BTreeMap<&str, &Service> = BTreeMap::new();
        for (service, group) in services.iter().zip(groups) {
            let Some(group) = group else { continue };
            let (span, name) = (group.span(), group.get_ref().as_str());
            if let Some((reason, help)) = alone(service, name) {
                self.faults.push(span, reason, help);
                continue;
            }
            let before = *first.entry(name).or_insert(service);
            if let Some((reason, help)) = apart(before, service) {
                self.faults.push(span, reason, help);
            }
        }
    }
}

/// What is wrong with a member, whatever the others are.
fn alone(service: &Service, group: &str) -> Option<(String, String)> {
    let letters = group.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if group.is_empty() || group.len() > 32 || !letters {
        let help = "use 1 to 32 letters, digits, dots, dashes and underscores".to_owned();
        return Some((format!("`{group}` cannot name a group"), help));
    }
    let (name, kind) = (&service.name, service.affinity.kind());
    if !matches!(service.affinity, Affinity::Source { .. } | Affinity::Hashed(_)) {
        let help =
            "leave `affinity_group` away, or use affinity `source` or `hashed`, where a hash alone decides";
        return Some((
            format!("service `{name}` has affinity `{kind}`, which follows no hash"),
            help.to_owned(),
        ));
    }
    let mut hosts = BTreeSet::new();
    for backend in &service.backends {
        let Some(host) = host(backend) else {
            let reason = format!("backend `{}` of service `{name}` has no address in the file", backend.name);
            return Some((
                reason,
                "give every backend of a group an `addr`: its host is what counts".to_owned(),
            ));
        };
        if !backend.sni.is_empty() {
            let reason =
                format!("backend `{}` of service `{name}` is listed for names of servers", backend.name);
            return Some((
                reason,
                "leave `sni` or `affinity_group` away: names choose among some hosts only".to_owned(),
            ));
        }
        if !hosts.insert(host) {
            let reason = format!("service `{name}` has two backends on the host {host}");
            return Some((reason, "leave one away: a host stands in the table of a group once".to_owned()));
        }
    }
    None
}

/// What makes two members send a client to different hosts.
fn apart(one: &Service, other: &Service) -> Option<(String, String)> {
    let shares = |service: &Service| -> BTreeMap<_, _> {
        service.backends.iter().filter_map(|backend| Some((host(backend)?, backend.weight))).collect()
    };
    let (mine, others) = (shares(other), shares(one));
    let missing = |some: &BTreeMap<IpAddr, u16>, all: &BTreeMap<IpAddr, u16>| {
        all.keys().find(|host| !some.contains_key(host)).copied()
    };
    for (has, lacks, host) in [(one, other, missing(&mine, &others)), (other, one, missing(&others, &mine))] {
        if let Some(host) = host {
            let reason = format!(
                "service `{}` has the host {host}, service `{}` of its group has not",
                has.name, lacks.name
            );
            return Some((
                reason,
                "all services of a group have the same hosts, each on a port of its own".to_owned(),
            ));
        }
    }
    let (host, weight) = mine.iter().find(|(host, weight)| others[host] != **weight)?;
    let reason = format!(
        "the host {host} has weight {weight} in service `{}`, and {} in service `{}` of its group",
        other.name, others[host], one.name
    );
    Some((reason, "give it the same weight in all services of a group".to_owned()))
}

fn host(backend: &Backend) -> Option<IpAddr> {
    backend.addr.map(|addr| addr.ip())
}
