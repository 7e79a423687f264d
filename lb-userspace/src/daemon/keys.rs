//! The token keys: renewed here, or read again after another host renewed them.

use super::{Daemon, chain};
use crate::control::Refused;
use crate::registry::Change;
use crate::session::{KeysError, TokenKeys};
use std::io::ErrorKind;
use std::sync::Arc;

impl Daemon {
    /// Makes new keys of those in use, and writes them to the key file. Says what is so now.
    pub(super) fn renew_keys(
        &mut self,
        renew: impl FnOnce(&TokenKeys) -> Result<TokenKeys, KeysError>,
    ) -> anyhow::Result<Result<String, Refused>> {
        let path = &self.config.lbd.keys;
        let current = self.keys.load();
        match TokenKeys::load(path) {
            Ok(found) if found != **current => {
                return Ok(Err(Refused::with_help(
                    format!("the key file {} holds other keys than lbd uses", path.display()),
                    "`lbctl keys reload` takes them in; then try again",
                )));
            }
            Err(KeysError::Io { error, .. }) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Ok(Err(Refused::new(chain(&error)))),
            Ok(_) => {}
        }
        let renewed = renew(&current).and_then(|keys| {
            keys.store(path)?;
            Ok(keys)
        });
        match renewed {
            Ok(keys) => Ok(Ok(self.use_keys(keys)?)),
            Err(error) => Ok(Err(Refused::new(chain(&error)))),
        }
    }

    /// Reads the key file again. Says what is so now.
    pub(super) fn reload_keys(&mut self) -> anyhow::Result<Result<String, Refused>> {
        match TokenKeys::load(&self.config.lbd.keys) {
            Ok(keys) => Ok(Ok(self.use_keys(keys)?)),
            Err(error) => Ok(Err(Refused::with_help(chain(&error), "lbd goes on with the keys that it has"))),
        }
    }

    fn use_keys(&mut self, keys: TokenKeys) -> anyhow::Result<String> {
        let lost = keys.lost(&self.keys.load());
        // The programs must know a key before the first token that it signs comes back.
        let (map_keys, mask) = keys.as_map();
        self.apply(Change::TokenKeys { keys: Box::new(map_keys), mask })?;
        let message = describe(&keys, &lost);
        self.keys.store(Arc::new(keys));
        tracing::info!("{message}");
        Ok(message)
    }
}

fn describe(keys: &TokenKeys, lost: &[u8]) -> String {
    let ids = keys.ids();
    let verify =
        if ids.len() == 1 { "1 key verifies".to_owned() } else { format!("{} keys verify", ids.len()) };
    let mut text = format!("key {} signs new tokens; {verify}", ids.first().copied().unwrap_or(0));
    if let Some(next) = keys.next() {
        text += &format!(
            "; key {next} is prepared: copy the key file to all hosts, reload there, then rotate on each"
        );
    }
    if !lost.is_empty() {
        let lost: Vec<_> = lost.iter().map(u8::to_string).collect();
        text += &format!("; gone: key {}: sessions whose tokens it signed begin anew", lost.join(", "));
    }
    text
}
