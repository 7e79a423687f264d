//! Where a TLS connection would go whose client asks for a name, and why.

use super::Registry;
use super::service::Service;
use super::table::{Pool, Table};
use crate::config::{Affinity, Balance, Place, ServerName};
use crate::control::{ExplainView, Refused};
use lb_common::addr::Be16;
use lb_common::counter::Counter;
use lb_common::maglev::client_hash;
use lb_common::name::{UNKEYED, hash};
use std::net::IpAddr;

impl Registry {
    /// Explains what would become of a ClientHello with this name, or with none when it is empty, sent to `service` (or to the
    /// only one that reads names) by a client of that address.
    ///
    /// # Errors
    /// The service is not known, reads no names, or is not said; or no client asks for such a name.
    pub fn explain_name(
        &self,
        name: &str,
        service: Option<&str>,
        client: Option<IpAddr>,
    ) -> Result<ExplainView, Refused> {
        let id = self.reading_names(service)?;
        let service = &self.services[&id];
        let name = asked(name)?;
        let (table, why) = match listed(service, &name) {
            Some((pool, by)) => {
                let backends = self.backends.values().filter(|backend| pool.slots.contains(&backend.slot));
                let backends: Vec<_> = backends.map(|backend| backend.name.as_str()).collect();
                (Some(&pool.table), format!("{} listed for {by}", is_or_are(&backends)))
            }
            None if service.pools.is_empty() => {
                (Some(&service.table), "no backend is listed for any name".to_owned())
            }
            None => {
                let what = if name.is_empty() { "a client that asks for no name" } else { "that name" };
                let why = format!("no backend is listed for {what}");
                if service.names_only {
                    (None, format!("{why}, and every backend is listed for others"))
                } else {
                    (Some(&service.table), format!("{why}: those that are listed for none take it"))
                }
            }
        };
        let Some(table) = table else {
            let counters = [Counter::UnknownName, Counter::ResetNoBackend];
            return Ok(self.explained(id, None, "reset", None, why, &counters));
        };
        Ok(self.explain_among(id, table, &name, client, &why))
    }

    /// Where it goes among the backends of a table.
    fn explain_among(
        &self,
        id: u16,
        table: &Table,
        name: &str,
        client: Option<IpAddr>,
        why: &str,
    ) -> ExplainView {
        if table.slots.is_empty() {
            return self.explain_nobody(id, None, why, &[]);
        }
        let service = &self.services[&id];
        let known = |hash: u32, how: &str| {
            let backend = self.walk_in(&table.slots, id, hash);
            self.explained(id, None, "hashed", backend, format!("{why}; {how}"), &[Counter::Hashed])
        };
        match (&service.affinity, client) {
            (Affinity::Hashed(_), _) if !name.is_empty() => {
                known(hash(&UNKEYED, name.as_bytes()) as u32, "the name is hashed among them")
            }
            (Affinity::Source { .. }, Some(client)) => {
                known(client_hash(client.into(), Be16::new(0)), "the client's address is hashed among them")
            }
            (Affinity::Source { .. }, None) => {
                let why = format!(
                    "{why}; the client's address is hashed among them: say which it is with --client"
                );
                self.explained(id, None, "hashed", None, why, &[Counter::Hashed])
            }
            _ => {
                let how = match service.balance {
                    Balance::Maglev => "connections are spread over them by weight",
                    Balance::Least => "of two of them, the one with fewer live flows for its weight",
                };
                self.explained(id, None, "new", None, format!("{why}; {how}"), &[Counter::NewSession])
            }
        }
    }

    /// The id of the service that is meant: the one of that name, or the only one that reads names.
    fn reading_names(&self, service: Option<&str>) -> Result<u16, Refused> {
        let reads = |service: &Service| service.affinity.place() == Some(&Place::Sni);
        if let Some(name) = service {
            let id = self.find_service(name)?;
            return if reads(&self.services[&id]) {
                Ok(id)
            } else {
                let reason =
                    format!("service `{name}` reads no server's name: its affinity has no sni = true");
                Err(Refused::with_help(reason, "`lbctl service list` shows each one's affinity"))
            };
        }
        let all: Vec<_> = self.services.values().filter(|service| reads(service)).collect();
        match all[..] {
            [service] => Ok(service.id),
            [] => Err(Refused::with_help(
                "no service reads a server's name".to_owned(),
                "one that does has sni = true in its affinity",
            )),
            _ => {
                let names: Vec<_> = all.iter().map(|service| service.name.as_str()).collect();
                let help = format!("say which with --service: {}", names.join(", "));
                Err(Refused::with_help("several services read a server's name".to_owned(), help))
            }
        }
    }
}

/// What a client asks for, in lower case; nothing when it names nobody.
fn asked(name: &str) -> Result<String, Refused> {
    if name.is_empty() {
        return Ok(String::new());
    }
    if name.starts_with('*') {
        let reason = format!("the server's name `{name}` stands for many");
        return Err(Refused::with_help(reason, "give one that a client asks for, like shop.example.org"));
    }
    match ServerName::parse(name) {
        Ok(name) => Ok(name.text().to_owned()),
        Err((reason, help)) => Err(Refused::with_help(reason, help)),
    }
}

/// The pool that a name in lower case leads to, and the name that is listed: that one itself, or else the wildcard with the
/// most labels.
fn listed<'a>(service: &'a Service, name: &str) -> Option<(&'a Pool, &'a ServerName)> {
    let all = service.pools.iter().flat_map(|pool| pool.names.iter().map(move |listed| (pool, listed)));
    let matching = all.filter(|(_, listed)| listed.matches(name));
    matching.max_by_key(|(_, listed)| match listed {
        ServerName::Exact(_) => u32::MAX,
        ServerName::Wildcard(_) => listed.wildcard_labels(),
    })
}

fn is_or_are(names: &[&str]) -> String {
    match names {
        [one] => format!("{one} is"),
        all => format!("{} are", all.join(", ")),
    }
}
