//! Where a request with a token would go, and why: the packet program's steering rules, told instead of done.

use super::Registry;
use super::backend::Backend;
use crate::config::{Affinity, OnUnavailable, Protocol};
use crate::control::{ExplainView, Refused, TokenView};
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::hash::scale;
use lb_common::maglev::{WALK, next_hash, session_hash};
use lb_common::token::{self, Token, TokenError};

/// The steering of a service that looks at no token: in a few words, and the counter.
struct Blind {
    how: String,
    counter: Counter,
}

/// What a substitute does with a session of the database.
const RELOADS: &str = " and reloads the session from the database";

/// A backend's state, and why it is in it.
pub(super) fn condition(backend: &Backend) -> String {
    let reason = backend.reason.as_ref().filter(|_| !backend.state.serves_sessions());
    let reason = reason.map_or(String::new(), |reason| format!(" ({reason})"));
    format!("{}{reason}", backend.state_name())
}

impl Registry {
    /// Explains what would become of a first payload with this token, sent to `service` (or to the one it names); or of a QUIC
    /// packet with this connection id, for a service that goes by them.
    ///
    /// # Errors
    /// The service is not known, or cannot be told from a token that does not verify.
    pub fn explain(&self, text: &str, service: Option<&str>) -> Result<ExplainView, Refused> {
        let asked = service.map(|name| self.find_service(name)).transpose()?;
        let only = self.services.keys().next().copied().filter(|_| self.services.len() == 1);
        if let Some(id) = asked.or(only)
            && let Some(view) = self.explain_quic(id, text)?
        {
            return Ok(view);
        }
        match self.verify(text) {
            Ok(token) => {
                let id = asked.unwrap_or(token.service);
                if !self.services.contains_key(&id) {
                    let reason = format!("the token names service {id}, and there is none with that id");
                    return Err(Refused::with_help(reason, "say which service it is sent to with --service"));
                }
                Ok(if let Some(rule) = self.blind(id) {
                    self.explain_blind(id, Some(self.token_view(&token)), &rule)
                } else if id == token.service {
                    self.explain_valid(id, &token)
                } else {
                    let why =
                        format!("the token is good for service {} alone", self.service_label(token.service));
                    self.explain_new(id, Some(self.token_view(&token)), &why)
                })
            }
            Err(error) => {
                let id = asked.or(only).ok_or_else(|| {
                    let help = "say which service it is sent to with --service";
                    Refused::with_help(format!("{error}, so it names no service"), help)
                })?;
                Ok(match self.blind(id) {
                    Some(rule) => self.explain_blind(id, None, &rule),
                    None => self.explain_new(id, None, &error.to_string()),
                })
            }
        }
    }

    /// What a token says, if it verifies.
    ///
    /// # Errors
    /// Why it does not.
    pub fn verify(&self, text: &str) -> Result<Token, TokenError> {
        let raw = token::decode(text.trim().as_bytes())?;
        let key = Token::key_id(&raw)?;
        if self.settings.token_key_mask >> key & 1 == 0 {
            return Err(TokenError::UnknownKey(key));
        }
        Token::verify(&raw, &self.settings.token_keys[usize::from(key)])
    }

    /// A token in the names that people know.
    pub fn token_view(&self, token: &Token) -> TokenView {
        TokenView {
            session: token.session.to_string(),
            service: self.service_label(token.service),
            backend: self.name_of(token.slot),
            slot: token.slot,
            epoch: token.epoch,
            key: token.key_id,
        }
    }

    /// How a service steers that looks at no token.
    fn blind(&self, id: u16) -> Option<Blind> {
        let service = &self.services[&id];
        let first = match service.protocol {
            Protocol::Tcp => "a connection is bound at its SYN",
            Protocol::Udp => "a flow is bound by its first datagram",
        };
        let (how, counter) = match &service.affinity {
            Affinity::Signed(_) => return None,
            Affinity::Hashed(place) => {
                (format!("what stands at its place ({place}) is hashed"), Counter::Hashed)
            }
            Affinity::Learned { place, .. } => {
                let how = format!(
                    "a key that a backend handed out ({place}) leads to that backend, any other one is hashed, and \
                     who has none begins a new session"
                );
                (how, Counter::NewSession)
            }
            Affinity::Quic(_) => {
                ("the server id in a QUIC connection id leads to its backend".to_owned(), Counter::NewSession)
            }
            Affinity::Source { sni: true } => ("the client's address is hashed".to_owned(), Counter::Hashed),
            Affinity::None { sni: true } => ("connections are spread".to_owned(), Counter::NewSession),
            Affinity::Source { sni: false } => (format!("{first}, by the client's address"), Counter::Hashed),
            Affinity::None { sni: false } => {
                (format!("{first}, by the client's address and port"), Counter::NewSession)
            }
        };
        Some(Blind { how, counter })
    }

    fn explain_blind(&self, id: u16, view: Option<TokenView>, Blind { how, counter }: &Blind) -> ExplainView {
        let why = format!("this service looks at no token: {how}");
        let service = &self.services[&id];
        if !service.pools.is_empty() {
            let why =
                format!("{why}, among the backends that are listed for the server's name; ask with --name");
            return self.explained(id, view, "new", None, why, &[*counter]);
        }
        if self.services[&id].table.slots.is_empty() {
            return self.explain_nobody(id, view, &why, &[]);
        }
        self.explained(id, view, "new", None, why, &[*counter])
    }

    /// What becomes of a client that nobody takes, and how that is counted.
    fn turned_away(&self, id: u16) -> (&'static str, Counter) {
        let service = &self.services[&id];
        match service.protocol {
            Protocol::Tcp if service.affinity.speaks_http() => ("unavailable", Counter::Unavailable),
            Protocol::Tcp => ("reset", Counter::ResetNoBackend),
            Protocol::Udp => ("dropped", Counter::DropNoBackend),
        }
    }

    /// Nobody is ready, which a TCP client is told.
    pub(super) fn explain_nobody(
        &self,
        id: u16,
        view: Option<TokenView>,
        why: &str,
        counters: &[Counter],
    ) -> ExplainView {
        let (verdict, counter) = self.turned_away(id);
        let counters = [counters, &[counter]].concat();
        self.explained(id, view, verdict, None, format!("{why}; no backend is ready"), &counters)
    }

    fn explain_valid(&self, id: u16, token: &Token) -> ExplainView {
        let view = Some(self.token_view(token));
        let owner = self.backends.get(&token.slot).filter(|backend| backend.service == id);
        let Some(backend) = owner else {
            let why = format!("no backend of this service has slot {} any more", token.slot);
            return self.explain_redispatch(id, session_hash(&token.session), view, &why, RELOADS);
        };
        let (name, state) = (&backend.name, backend.state_name());
        if !backend.state.serves_sessions() {
            let why = format!("{name} holds the session, but is {}", condition(backend));
            return self.explain_redispatch(id, session_hash(&token.session), view, &why, RELOADS);
        }
        let stale = backend.epoch != token.epoch;
        let (verdict, why, counters) = if stale {
            let why = format!(
                "{name} is {state} and in epoch {}, the token is from epoch {}: it goes there, and the server reloads \
                 the session from the database",
                backend.epoch, token.epoch
            );
            ("stale", why, vec![Counter::AffinityHit, Counter::StaleInstance])
        } else {
            let why = format!(
                "{name} is {state} and in the token's epoch {}: its cache holds the session",
                token.epoch
            );
            ("hit", why, vec![Counter::AffinityHit])
        };
        self.explained(id, view, verdict, Some(self.full_name(backend)), why, &counters)
    }

    pub(super) fn explain_redispatch(
        &self,
        id: u16,
        hash: u32,
        view: Option<TokenView>,
        why: &str,
        then: &str,
    ) -> ExplainView {
        if self.services[&id].on_unavailable == OnUnavailable::Reject {
            let why = format!("{why}, and this service gives its sessions to no other backend");
            let (verdict, counter) = self.turned_away(id);
            return self.explained(id, view, verdict, None, why, &[Counter::Rejected, counter]);
        }
        match self.walk(id, hash) {
            Some(name) => {
                let why = format!("{why}; {name} takes its place{then}");
                self.explained(id, view, "redispatched", Some(name), why, &[Counter::Redispatched])
            }
            None => self.explain_nobody(id, view, why, &[]),
        }
    }

    fn explain_new(&self, id: u16, view: Option<TokenView>, why: &str) -> ExplainView {
        let service = &self.services[&id];
        if service.table.slots.is_empty() {
            return self.explain_nobody(id, view, why, &[Counter::InvalidToken]);
        }
        let why = format!("{why}: a new session begins, at a ready backend chosen by weight");
        self.explained(id, view, "new", None, why, &[Counter::InvalidToken, Counter::NewSession])
    }

    pub(super) fn explained(
        &self,
        id: u16,
        token: Option<TokenView>,
        verdict: &str,
        backend: Option<String>,
        why: String,
        counters: &[Counter],
    ) -> ExplainView {
        ExplainView {
            service: self.service_label(id),
            token,
            verdict: verdict.to_owned(),
            backend,
            why,
            counters: counters.iter().map(|counter| counter.name().to_owned()).collect(),
        }
    }

    /// The ready backend that a hash leads to: the same walk as the packet program's.
    pub(super) fn walk(&self, id: u16, hash: u32) -> Option<String> {
        self.walk_in(&self.services[&id].table.slots, id, hash)
    }

    /// The same in a table of a service's.
    pub(super) fn walk_in(&self, table: &[u16], id: u16, mut hash: u32) -> Option<String> {
        let size = u32::try_from(table.len()).ok().filter(|size| *size > 0)?;
        for _ in 0..WALK {
            let slot = table[scale(hash, size) as usize];
            if let Some(backend) = self.backends.get(&slot)
                && backend.service == id
                && backend.state == State::Ready
            {
                return Some(self.full_name(backend));
            }
            hash = next_hash(hash);
        }
        None
    }

    fn service_label(&self, id: u16) -> String {
        self.service_name(id).map_or_else(|| format!("#{id}"), str::to_owned)
    }
}
