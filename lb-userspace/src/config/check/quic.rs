//! Affinity `quic`: its configurations, the keys in files, and the server ids of backends.

use super::Checker;
use crate::config::fault::Span;
use crate::config::quic::hex;
use crate::config::raw::{RawAffinity, RawQuic, ServerIds};
use crate::config::{Affinity, Protocol, QuicConfig, QuicKey};
use lb_common::quic_lb::{CONFIGS, MAX_ID, MAX_NONCE, MAX_SERVER_ID, MIN_NONCE, SERVER_IDS};
use serde_spanned::Spanned;
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A backend's server ids, and where they stand.
pub(super) struct Ids {
    pub(super) backend: String,
    pub(super) managed: bool,
    /// Where the backend stands.
    pub(super) span: Span,
    pub(super) ids: Vec<(Vec<u8>, Span)>,
}

impl Checker<'_, '_> {
    pub(super) fn quic(&mut self, raw: RawAffinity, protocol: Protocol, span: &Span) -> Affinity {
        if protocol == Protocol::Tcp {
            let kind = raw.kind.as_ref().map_or(span.clone(), Spanned::span);
            self.faults.push(kind, "affinity `quic` in a tcp service", "write protocol = \"udp\"");
        }
        let Some(configs) = raw.configs.filter(|configs| !configs.get_ref().is_empty()) else {
            let help =
                "add configs = [{ rotation = 0, server_id_bytes = 2, nonce_bytes = 6, key_file = \"...\" }]";
            self.missing(raw.mistyped, span.clone(), "affinity `quic` has no `configs`", help);
            return Affinity::Quic(Vec::new());
        };
        let mut rotations = HashMap::new();
        let mut checked: Vec<QuicConfig> = Vec::new();
        for raw in configs.into_inner() {
            let span = raw.span();
            let Some(config) = self.quic_config(raw.into_inner(), &span) else { continue };
            if rotations.insert(config.rotation, ()).is_some() {
                let reason = format!("two configurations have rotation {}", config.rotation);
                let help =
                    "each has its own, 0 to 6: it is how a connection id tells which one it was made with";
                self.faults.push(span.clone(), reason, help);
            }
            // §9.7 of the draft: else the clear ids help to break the encrypted ones.
            let clear = |other: &QuicConfig| {
                other.server_id_bytes == config.server_id_bytes && other.key.is_none() != config.key.is_none()
            };
            if checked.iter().any(clear) {
                let reason = "the same server ids would stand in the clear and encrypted";
                let help = "give the configuration without a key another server_id_bytes, and backends an id of each length";
                self.faults.push(span, reason, help);
            }
            checked.push(config);
        }
        Affinity::Quic(checked)
    }

    fn quic_config(&mut self, raw: RawQuic, span: &Span) -> Option<QuicConfig> {
        let mut needed = |value: &Option<Spanned<u64>>, key: &str, help: &str| {
            if value.is_none() {
                self.missing(raw.mistyped, span.clone(), format!("a configuration has no `{key}`"), help);
            }
            value.is_some()
        };
        let complete = [
            needed(&raw.rotation, "rotation", "add rotation = 0 to 6"),
            needed(
                &raw.server_id_bytes,
                "server_id_bytes",
                &format!("add server_id_bytes = 1 to {MAX_SERVER_ID}"),
            ),
            needed(&raw.nonce_bytes, "nonce_bytes", &format!("add nonce_bytes = {MIN_NONCE} to {MAX_NONCE}")),
        ];
        if complete.contains(&false) {
            return None;
        }
        let before = self.faults.len();
        let rotation = self.number(raw.rotation, "rotation", 0..=CONFIGS as u8 - 1, 0);
        let server_id_bytes = self.number(raw.server_id_bytes, "server_id_bytes", 1..=MAX_SERVER_ID as u8, 1);
        let nonce_bytes = self.number(raw.nonce_bytes, "nonce_bytes", MIN_NONCE as u8..=MAX_NONCE as u8, 4);
        let key = self.quic_key(raw.key, raw.key_file);
        let config = QuicConfig {
            rotation,
            server_id_bytes: server_id_bytes.into(),
            nonce_bytes: nonce_bytes.into(),
            key,
        };
        if let Err(error) = config.to_map() {
            let help = format!("a connection id has {MAX_ID} bytes at most, the first of which is taken");
            self.faults.push(span.clone(), error.to_string(), help);
        }
        (self.faults.len() == before).then_some(config)
    }

    fn quic_key(&mut self, key: Option<Spanned<String>>, file: Option<Spanned<String>>) -> Option<QuicKey> {
        const HELP: &str = "write 32 hexadecimal digits, such as `openssl rand -hex 16` prints";
        if let (Some(_), Some(file)) = (&key, &file) {
            self.faults.push(file.span(), "`key` and `key_file` both give the key", "leave one of them away");
            return None;
        }
        if let Some(key) = key {
            let read = QuicKey::from_hex(key.get_ref().trim());
            if read.is_none() {
                self.faults.push(key.span(), "`key` is no key", HELP);
            }
            return read;
        }
        let file = file?;
        let span = file.span();
        let path = self.path(Some(file), PathBuf::new());
        let read = std::fs::metadata(&path).and_then(|found| Ok((found, std::fs::read_to_string(&path)?)));
        let (reason, help) = match read {
            Err(error) => (format!("cannot read the key file {}: {error}", path.display()), HELP),
            Ok((found, _)) if found.permissions().mode() & 0o077 != 0 => (
                format!("others than its owner can read the key file {}", path.display()),
                "run chmod 600 on it",
            ),
            Ok((_, text)) => match QuicKey::from_hex(text.trim()) {
                Some(key) => return Some(key),
                None => (format!("the key file {} holds no key", path.display()), HELP),
            },
        };
        self.faults.push(span, reason, help);
        None
    }

    /// A backend's server ids, as bytes.
    pub(super) fn server_ids(&mut self, raw: Option<Spanned<ServerIds>>) -> Vec<(Vec<u8>, Span)> {
        let Some(raw) = raw else { return Vec::new() };
        let mut ids = Vec::new();
        for id in raw.into_inner().0 {
            match hex(id.get_ref()).filter(|id| (1..=MAX_SERVER_ID).contains(&id.len())) {
                Some(bytes) => ids.push((bytes, id.span())),
                None => {
                    let reason = format!("`server_id` \"{}\" is no server id", id.get_ref());
                    let help = format!("write 1 to {MAX_SERVER_ID} bytes, each as two hexadecimal digits");
                    self.faults.push(id.span(), reason, help);
                }
            }
        }
        ids
    }

    /// Server ids against the service's rule: every configuration finds one of its length in every backend, and none is
    /// another backend's.
    pub(super) fn quic_backends(&mut self, affinity: &Affinity, backends: &[Ids]) {
        let Affinity::Quic(configs) = affinity else {
            for Ids { ids, .. } in backends {
                if let Some((_, span)) = ids.first() {
                    let help = "leave it away: it belongs to affinity `quic`";
                    self.faults.push(span.clone(), "`server_id` has no meaning here", help);
                }
            }
            return;
        };
        let mut owners: HashMap<&[u8], &str> = HashMap::new();
        for Ids { backend: name, managed, span, ids } in backends {
            if *managed {
                let help = "write addr = \"...\": the servers that lbd runs speak no QUIC";
                let reason = format!("backend `{name}` is managed, in a service with affinity `quic`");
                self.faults.push(span.clone(), reason, help);
            }
            for config in configs {
                let bytes = config.server_id_bytes;
                let fitting = ids.iter().filter(|(id, _)| id.len() == bytes).count();
                if fitting != 1 {
                    let reason = format!(
                        "backend `{name}` has {fitting} server ids of {bytes} bytes, but the configuration with rotation {} \
                         needs one",
                        config.rotation
                    );
                    let help = format!(
                        "write server_id = \"{}\", or a list of one for each length",
                        "0a".repeat(bytes)
                    );
                    self.faults.push(span.clone(), reason, help);
                    break;
                }
            }
            for (id, span) in ids {
                if !configs.is_empty() && configs.iter().all(|config| config.server_id_bytes != id.len()) {
                    let reason = format!("no configuration has server ids of {} bytes", id.len());
                    self.faults.push(
                        span.clone(),
                        reason,
                        "give it the length that a `server_id_bytes` says",
                    );
                }
                if let Some(owner) = owners.insert(id, name) {
                    let reason = format!("backend `{owner}` has this server id, too");
                    self.faults.push(span.clone(), reason, "server ids are unique in a service");
                }
            }
            if ids.len() > SERVER_IDS as usize {
                let reason = format!("backend `{name}` has {} server ids", ids.len());
                self.faults.push(span.clone(), reason, format!("there is room for {SERVER_IDS}"));
            }
        }
    }
}
