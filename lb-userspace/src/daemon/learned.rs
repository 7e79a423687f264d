//! What lbctl asks of learned sessions: where they are at home, and to forget it. They stand in a map, so the answer is there at
//! once.

use super::Daemon;
use crate::control::{ExplainView, LearnedListView, LearnedView, Refused, Response};
use lb_common::home::Home;

/// Digits of a tag in hexadecimal.
const TAG_DIGITS: usize = 16;

impl Daemon {
    /// The learned session that a tag or a key means, of one service or any. `None`: there is none, and it may be a token.
    ///
    /// # Errors
    /// No service is named so, or it learns nothing; or that service knows no such session.
    pub(super) fn learned(&self, text: &str, service: Option<&str>) -> Result<Option<Home>, Refused> {
        let only = service.map(|name| self.learning_service(name)).transpose()?;
        let of_tag = tag(text).and_then(|tag| self.present(tag, only));
        let learning = self.registry.service_ids().filter(|id| only.is_none_or(|only| only == *id));
        let mut of_key = learning.filter_map(|id| self.present(self.datapath.tag(id, text.as_bytes()), only));
        match (of_tag.or_else(|| of_key.next()), service) {
            (None, Some(name)) => Err(Refused::with_help(
                format!("service {name} knows no such session: it was never learned, or is forgotten"),
                "`lbctl session list` shows those that are known, by their tags",
            )),
            (found, _) => Ok(found),
        }
    }

    pub(super) fn list_learned(
        &self,
        service: Option<&str>,
        backend: Option<&str>,
        limit: usize,
    ) -> Result<LearnedListView, Refused> {
        let service = service.map(|name| self.learning_service(name)).transpose()?;
        let backend = backend.map(|name| self.registry.find(name)).transpose()?;
        let mut view = LearnedListView::default();
        let wanted = self.datapath.homes().iter().filter(|home| {
            service.is_none_or(|id| home.service == id)
                && backend.is_none_or(|slot| home.slot == slot)
                && self.is_known(home)
        });
        for home in wanted {
            view.total += 1;
            if view.sessions.len() < limit {
                view.sessions.push(self.learned_view(&home));
            }
        }
        Ok(view)
    }

    /// Where a request with a key would go, if it is a key's place to lead anywhere.
    pub(super) fn explain_learned(&self, key: &str, service: Option<&str>) -> Option<ExplainView> {
        let id = self.registry.learning(service)?;
        let home = self.present(self.datapath.tag(id, key.as_bytes()), Some(id));
        Some(self.registry.explain_key(id, key.as_bytes(), home.map(|home| home.slot)))
    }

    pub(super) fn learned_view(&self, home: &Home) -> LearnedView {
        let clock = self.datapath.clock();
        let idle = self.idle_ticks(home);
        let left = self.datapath.learned_ticks(home.service).saturating_sub(idle);
        LearnedView {
            tag: format!("{:016x}", home.tag),
            service: self.registry.service_name(home.service).unwrap_or("?").to_owned(),
            backend: self.registry.name_of(home.slot).unwrap_or_else(|| format!("slot {}", home.slot)),
            idle_ms: clock.duration(idle).as_millis() as u64,
            forgotten_in_ms: clock.duration(left).as_millis() as u64,
        }
    }

    pub(super) fn forget_learned(&self, home: &Home) -> Response {
        let LearnedView { tag, service, backend, .. } = self.learned_view(home);
        self.datapath.forget_home(home.tag);
        tracing::info!(tag, service, backend, "learned session forgotten by the operator");
        let message =
            format!("session {tag} of {service} is forgotten; {backend} no longer gets it for its key");
        Response::Done { message }
    }

    /// The id of a service that learns its sessions.
    fn learning_service(&self, name: &str) -> Result<u16, Refused> {
        let id = self.registry.find_service(name)?;
        if self.datapath.learned_ticks(id) == 0 {
            return Err(Refused::with_help(
                format!("service {name} learns no sessions"),
                "`lbctl service list` shows by what each service steers",
            ));
        }
        Ok(id)
    }

    fn present(&self, tag: u64, service: Option<u16>) -> Option<Home> {
        let home = self.datapath.homes().find(tag)?;
        (service.is_none_or(|id| home.service == id) && self.is_known(&home)).then_some(home)
    }

    /// Whether the programs would still find it.
    fn is_known(&self, home: &Home) -> bool {
        self.idle_ticks(home) <= self.datapath.learned_ticks(home.service)
            && self.registry.service_of(home.slot) == Some(home.service)
    }

    /// Ticks since a client last asked for it.
    fn idle_ticks(&self, home: &Home) -> u32 {
        // A packet of this very moment may have begun a tick that we do not know of yet.
        (self.datapath.clock().tick().wrapping_sub(home.last_used) as i32).max(0).cast_unsigned()
    }
}

/// A tag as it is shown.
fn tag(text: &str) -> Option<u64> {
    let digits = text.len() == TAG_DIGITS && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::tag;

    #[test]
    fn a_tag_is_sixteen_hexadecimal_digits() {
        assert_eq!(tag("00000000000000ff"), Some(255));
        assert_eq!(tag("FFFFFFFFFFFFFFFF"), Some(u64::MAX));
        for text in ["", "ff", "+0000000000000ff", "00000000000000fg", "00000000000000ff0"] {
            assert_eq!(tag(text), None, "{text}");
        }
    }
}
