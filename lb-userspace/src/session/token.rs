//! The keys that sign tokens, and the file they live in. Up to 16 are alive: the newest signs, all verify. One may be
//! prepared: it verifies already and signs later, so that several hosts can get to know it first.

use lb_common::hash::SipKey;
use lb_common::token::{self, MAX_KEYS, SessionId, Token, TokenError};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Owner;

/// Of the key file.
const FORMAT: u32 = 1;

/// The token keys of a balancer. All its nodes must have the same.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKeys {
    keys: [Option<SipKey>; MAX_KEYS],
    newest: u8,
    /// The one that signs after the next rotation, if that is there already.
    next: Option<u8>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("key file {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "key file {path} has mode {mode:04o}, so others can read it and forge tokens: chmod 600 {path}, and if \
         others may have read it, remove it so that new keys are made (that ends all sessions)"
    )]
    Mode { path: PathBuf, mode: u32 },
    #[error("key file {path}: {reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("no random numbers for a token key: {0}")]
    Random(String),
}

/// The file, as written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: u32,
    newest: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<u8>,
    key: Vec<KeyEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    id: u8,
    /// 32 hexadecimal digits.
    secret: String,
}

impl TokenKeys {
    /// One new random key.
    ///
    /// # Errors
    /// [`KeysError::Random`].
    pub fn generate() -> Result<Self, KeysError> {
        let mut keys = [None; MAX_KEYS];
        keys[0] = Some(random_key()?);
        Ok(Self { keys, newest: 0, next: None })
    }

    /// Reads the key file; makes one with a new key (mode 0600) if there is none.
    ///
    /// # Errors
    /// [`KeysError::Mode`] when others than the owner may read or write it, [`KeysError::Parse`] with the line.
    pub fn load_or_create(path: &Path) -> Result<Self, KeysError> {
        match Self::load(path) {
            Err(KeysError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let keys = Self::generate()?;
        let made = write(path, &keys.to_text(), |temporary| fs::hard_link(temporary, path));
        match made {
            Ok(()) => Ok(keys),
            // Another process was first: its keys are the ones.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(error) => Err(KeysError::Io { path: path.into(), error }),
        }
    }

    /// Reads the key file.
    ///
    /// # Errors
    /// As [`TokenKeys::load_or_create`], and when there is none.
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        let failed = |error| KeysError::Io { path: path.into(), error };
        let mut file = File::open(path).map_err(failed)?;
        // Asked of the open file: a name could be changed in between.
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeysError::Mode { path: path.into(), mode });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Self::from_text(&text).map_err(|reason| KeysError::Parse { path: path.into(), reason })
    }

    /// Replaces the key file, whole or not at all.
    ///
    /// # Errors
    /// [`KeysError::Io`].
    pub fn store(&self, path: &Path) -> Result<(), KeysError> {
        write(path, &self.to_text(), |temporary| fs::rename(temporary, path))
            .map_err(|error| KeysError::Io { path: path.into(), error })
    }

    /// With a key that verifies from now on and signs after the next rotation. The oldest goes when 16 are alive; tokens
    /// that it signed end then. The same keys when one is prepared already.
    ///
    /// # Errors
    /// [`KeysError::Random`].
    pub fn prepared(&self) -> Result<Self, KeysError> {
        if self.next.is_some() {
            return Ok(self.clone());
        }
        let next = (self.newest + 1) % MAX_KEYS as u8;
        let mut keys = self.keys;
        keys[usize::from(next)] = Some(random_key()?);
        Ok(Self { keys, newest: self.newest, next: Some(next) })
    }

    /// With the prepared key, or else a new one, that signs from now on.
    ///
    /// # Errors
    /// As [`TokenKeys::prepared`].
    pub fn rotated(&self) -> Result<Self, KeysError> {
        let Self { keys, newest, next } = self.prepared()?;
        Ok(Self { keys, newest: next.unwrap_or(newest), next: None })
    }

    /// The key that is prepared.
    pub fn next(&self) -> Option<u8> {
        self.next
    }

    /// Keys of `before` that are not among these, so that tokens that they signed do not verify any more.
    pub fn lost(&self, before: &Self) -> Vec<u8> {
        before
            .ids()
            .into_iter()
            .filter(|id| self.keys[usize::from(*id)] != before.keys[usize::from(*id)])
            .collect()
    }

    /// [`TokenKeys::rotated`], written to the key file. Give the kernel the new key before the servers sign with it.
    ///
    /// # Errors
    /// [`KeysError`]; the keys are then what they were.
    pub fn rotate(&mut self, path: &Path) -> Result<(), KeysError> {
        let next = self.rotated()?;
        next.store(path)?;
        *self = next;
        Ok(())
    }

    /// The token for a session at an instance, signed with the newest key.
    pub fn token(&self, service: u16, owner: Owner, session: SessionId) -> Token {
        Token { key_id: self.newest, service, slot: owner.slot, epoch: owner.epoch, session }
    }

    /// A token's text. `None` when its key is no longer alive.
    pub fn sign(&self, token: &Token) -> Option<String> {
        let key = self.keys.get(usize::from(token.key_id))?.as_ref()?;
        let text = token::encode(&token.sign(key));
        Some(text.iter().map(|&byte| char::from(byte)).collect())
    }

    /// Reads a token's text.
    ///
    /// # Errors
    /// [`TokenError`]: nothing of a token that fails may be trusted.
    pub fn verify(&self, text: &[u8]) -> Result<Token, TokenError> {
        let raw = token::decode(text)?;
        let id = Token::key_id(&raw)?;
        let key = self.keys[usize::from(id)].as_ref().ok_or(TokenError::UnknownKey(id))?;
        Token::verify(&raw, key)
    }

    /// For the settings map: the keys by id, and a bit for each that is alive.
    pub fn as_map(&self) -> ([SipKey; MAX_KEYS], u32) {
        let mask = (0..MAX_KEYS).filter(|&id| self.keys[id].is_some()).fold(0, |mask, id| mask | 1 << id);
        (self.keys.map(Option::unwrap_or_default), mask)
    }

    /// Ids of the keys that are alive, the newest first.
    pub fn ids(&self) -> Vec<u8> {
        (0..MAX_KEYS as u8)
            .map(|back| (self.newest + MAX_KEYS as u8 - back) % MAX_KEYS as u8)
            .filter(|&id| self.keys[usize::from(id)].is_some())
            .collect()
    }

    fn to_text(&self) -> String {
        let key = (0..MAX_KEYS as u8)
            .filter_map(|id| {
                let [low, high] = self.keys[usize::from(id)]?;
                let secret = low.to_le_bytes().into_iter().chain(high.to_le_bytes());
                Some(KeyEntry { id, secret: secret.map(|byte| format!("{byte:02x}")).collect() })
            })
            .collect();
        let file = KeyFile { format: FORMAT, newest: self.newest, next: self.next, key };
        let body = toml::to_string(&file).expect("numbers and strings are TOML");
        format!(
            "# Signs the session tokens. Who knows a key can forge tokens: keep it secret, mode 0600.\n{body}"
        )
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let file: KeyFile = toml::from_str(text).map_err(|error| without_secrets(text, &error))?;
        if file.format != FORMAT {
            return Err(format!("format {}, this version reads format {FORMAT}", file.format));
        }
        let mut keys = [None; MAX_KEYS];
        for entry in &file.key {
            let id = entry.id;
            let slot =
                keys.get_mut(usize::from(id)).ok_or_else(|| format!("key id {id}: ids are 0 to 15"))?;
            if slot.is_some() {
                return Err(format!("key id {id} is there twice"));
            }
            *slot =
                Some(secret(&entry.secret).ok_or_else(|| format!("key {id}: not 32 hexadecimal digits"))?);
        }
        if keys.get(usize::from(file.newest)).copied().flatten().is_none() {
            return Err(format!(
                "the newest key is said to be {}, and there is none of that id",
                file.newest
            ));
        }
        if let Some(next) = file.next
            && (next == file.newest || keys.get(usize::from(next)).copied().flatten().is_none())
        {
            return Err(format!(
                "the next key is said to be {next}, and there is none of that id beside the newest"
            ));
        }
        Ok(Self { keys, newest: file.newest, next: file.next })
    }
}

impl std::fmt::Debug for TokenKeys {
    /// Never shows a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKeys").field("ids", &self.ids()).finish_non_exhaustive()
    }
}

/// The parser's own message quotes the line, and with it a secret.
fn without_secrets(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}

fn secret(text: &str) -> Option<SipKey> {
    if text.len() != 32 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let word = |digits| u64::from_str_radix(digits, 16).ok().map(u64::swap_bytes);
    Some([word(&text[..16])?, word(&text[16..])?])
}

fn random_key() -> Result<SipKey, KeysError> {
    let random = || getrandom::u64().map_err(|error| KeysError::Random(error.to_string()));
    Ok([random()?, random()?])
}

/// Writes a file beside `path`, makes it durable, and lets `put` move it into place.
fn write(path: &Path, text: &str, put: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
    let random = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
    let temporary = directory.join(format!(".{name}.{random:016x}"));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        put(&temporary)
    })();
    // A rename has taken it away; a link or a failure has not.
    let _ = fs::remove_file(&temporary);
    written?;
    File::open(directory)?.sync_all()
}

/// The text of a key file, for the fuzzer.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use super::TokenKeys;

    /// # Errors
    /// What is wrong with it.
    pub fn keys(text: &str) -> Result<TokenKeys, String> {
        TokenKeys::from_text(text)
    }

    pub fn text(keys: &TokenKeys) -> String {
        keys.to_text()
    }
}

#[cfg(test)]
mod tests;
