//! What the operator's names mean.

use super::Registry;
use super::backend::Server;
use crate::control::Refused;

impl Registry {
    /// The slot that a name means: `service/backend`, or `backend` where only one service has it.
    ///
    /// # Errors
    /// No backend is named so, or several are.
    pub fn find(&self, name: &str) -> Result<u16, Refused> {
        let matching: Vec<_> =
            self.backends.values().filter(|b| b.name == name || self.full_name(b) == name).collect();
        match matching[..] {
            [backend] => Ok(backend.slot),
            [] => {
                let names: Vec<_> = self.backends.values().map(|backend| self.full_name(backend)).collect();
                Err(Refused::with_help(format!("there is no backend `{name}`"), suggest(name, &names)))
            }
            _ => {
                let names: Vec<_> = matching.iter().map(|backend| self.full_name(backend)).collect();
                let reason = format!("`{name}` names several backends");
                Err(Refused::with_help(reason, format!("say which: {}", names.join(", "))))
            }
        }
    }

    /// The id that a service's name means.
    ///
    /// # Errors
    /// No service is named so.
    pub fn find_service(&self, name: &str) -> Result<u16, Refused> {
        self.services.values().find(|service| service.name == name).map(|service| service.id).ok_or_else(
            || {
                let names: Vec<_> = self.services.values().map(|service| service.name.clone()).collect();
                Refused::with_help(format!("there is no service `{name}`"), suggest(name, &names))
            },
        )
    }

    /// The slot of a server that lbd runs.
    ///
    /// # Errors
    /// As [`Registry::find`], or others run it, so that it cannot be `done` that.
    pub(super) fn find_managed(&self, name: &str, done: &str) -> Result<u16, Refused> {
        let slot = self.find_configured(name)?;
        match &self.backends[&slot].server {
            Server::Elsewhere => Err(Refused::with_help(
                format!("lbd does not run `{name}`, so it cannot be {done} from here"),
                format!("`lbctl backend maint {name}` takes it out before you do that where it runs"),
            )),
            _ if self.stopping => Err(Refused::new("lbd is stopping")),
            _ => Ok(slot),
        }
    }
}

fn suggest(typed: &str, known: &[String]) -> String {
    let distance = |name: &&String| {
        let short = name.rsplit('/').next().unwrap_or(name);
        strsim::damerau_levenshtein(typed, name).min(strsim::damerau_levenshtein(typed, short))
    };
    match known.iter().min_by_key(distance).filter(|name| distance(name) <= (typed.len() / 3).max(1)) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("there are: {}", known.join(", ")),
    }
}
