//! The token keys as a running process uses them: exchanged while it runs, and read again when their file changes.

use super::{KeysError, Owner, TokenKeys};
use arc_swap::ArcSwap;
use lb_common::token::{SessionId, Token, TokenError};
use parking_lot::Mutex;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// While tokens verify, the file is looked at no more often than this: a newer key is wanted for signing, not needed.
const PAUSE: Duration = Duration::from_secs(1);

/// Signs and verifies tokens with keys that can change at any time.
///
/// ```
/// use lb_userspace::session::{Keyring, Owner, SessionId, TokenKeys};
///
/// let keyring = Keyring::from(TokenKeys::generate()?);
/// let text = keyring.sign(1, Owner { slot: 7, epoch: 3 }, SessionId([9; 16])).unwrap();
/// let token = keyring.verify(text.as_bytes()).unwrap();
/// assert_eq!((text.len(), token.slot, token.epoch), (44, 7, 3));
/// # Ok::<_, lb_userspace::session::KeysError>(())
/// ```
#[derive(Debug)]
pub struct Keyring {
    keys: Arc<ArcSwap<TokenKeys>>,
    file: Option<KeyFile>,
}

#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
    seen: Mutex<Seen>,
}

/// The file as it was when it was read.
#[derive(Debug)]
struct Seen {
    version: Option<Version>,
    looked: Instant,
}

/// Modification time in seconds and nanoseconds, inode, size.
type Version = (i64, i64, u64, u64);

impl Keyring {
    /// The keys in a file that lbd made, or another application of the same service; it is read again when it changes, so
    /// that keys can be rotated while this process runs.
    ///
    /// # Errors
    /// [`KeysError`], also when there is no such file.
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        // Looked at before it is read: what changes in between is noticed later.
        let version = version(path);
        Ok(Self::with_file(TokenKeys::load(path)?, path, version))
    }

    /// As [`Keyring::open`], but makes the file with a new key if there is none.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn open_or_create(path: &Path) -> Result<Self, KeysError> {
        let keys = TokenKeys::load_or_create(path)?;
        Ok(Self::with_file(keys, path, None))
    }

    fn with_file(keys: TokenKeys, path: &Path, version: Option<Version>) -> Self {
        let seen = Mutex::new(Seen { version, looked: Instant::now() });
        Self { keys: Arc::new(ArcSwap::from_pointee(keys)), file: Some(KeyFile { path: path.into(), seen }) }
    }

    /// The keys of this moment.
    pub fn keys(&self) -> Arc<TokenKeys> {
        self.keys.load_full()
    }

    /// The token of a session at an instance, signed with the newest key: what a client should present.
    pub fn token(&self, service: u16, owner: Owner, session: SessionId) -> Token {
        self.keys.load().token(service, owner, session)
    }

    /// The text of [`Keyring::token`].
    pub fn sign(&self, service: u16, owner: Owner, session: SessionId) -> Option<String> {
        self.refresh(PAUSE);
        let keys = self.keys.load();
        keys.sign(&keys.token(service, owner, session))
    }

    /// Reads a token's text.
    ///
    /// # Errors
    /// [`TokenError`]: nothing of a token that fails may be trusted.
    pub fn verify(&self, text: &[u8]) -> Result<Token, TokenError> {
        let verified = self.keys.load().verify(text);
        match verified {
            // Perhaps signed with a key that is newer than what was read: the session must not be lost for that.
            Err(TokenError::UnknownKey(_) | TokenError::Signature) if self.refresh(Duration::ZERO) => {
                self.keys.load().verify(text)
            }
            other => other,
        }
    }

    /// Reads the file again if it has changed and was not looked at for that long. True when there are other keys now.
    fn refresh(&self, pause: Duration) -> bool {
        let Some(KeyFile { path, seen }) = &self.file else { return false };
        let mut seen = seen.lock();
        if seen.looked.elapsed() < pause {
            return false;
        }
        seen.looked = Instant::now();
        let found = version(path);
        if found.is_none() || found == seen.version {
            return false;
        }
        seen.version = found;
        match TokenKeys::load(path) {
            Ok(keys) if keys == **self.keys.load() => false,
            Ok(keys) => {
                tracing::info!(path = %path.display(), ids = ?keys.ids(), "token keys read again");
                self.keys.store(Arc::new(keys));
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the key file has changed and cannot be read: the keys stay as they were");
                false
            }
        }
    }
}

impl From<TokenKeys> for Keyring {
    /// Keys that stay as they are.
    fn from(keys: TokenKeys) -> Self {
        Arc::new(ArcSwap::from_pointee(keys)).into()
    }
}

impl From<Arc<ArcSwap<TokenKeys>>> for Keyring {
    /// Keys that someone else exchanges.
    fn from(keys: Arc<ArcSwap<TokenKeys>>) -> Self {
        Self { keys, file: None }
    }
}

fn version(path: &Path) -> Option<Version> {
    let file = fs::metadata(path).ok()?;
    Some((file.mtime(), file.mtime_nsec(), file.ino(), file.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { slot: 7, epoch: 3 };
    const ID: SessionId = SessionId([9; 16]);

    #[test]
    fn a_token_of_a_newer_key_is_known_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        assert!(Keyring::open(&path).is_err(), "there is no file yet");
        let ours = Keyring::open_or_create(&path).unwrap();
        let theirs = Keyring::open(&path).unwrap();
        let old = ours.sign(1, OWNER, ID).unwrap();
        for _ in 0..3 {
            TokenKeys::load(&path).unwrap().rotate(&path).unwrap();
            let new = Keyring::open(&path).unwrap().sign(1, OWNER, ID).unwrap();
            for keyring in [&ours, &theirs] {
                assert_eq!(keyring.verify(new.as_bytes()).map(|token| token.session), Ok(ID));
                assert!(keyring.verify(old.as_bytes()).is_ok(), "older keys still verify");
                assert_eq!(keyring.sign(1, OWNER, ID).unwrap(), new, "and the newest signs");
            }
        }
    }

    #[test]
    fn a_file_that_went_bad_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        let keyring = Keyring::open_or_create(&path).unwrap();
        let text = keyring.sign(1, OWNER, ID).unwrap();
        let forged = Keyring::from(TokenKeys::generate().unwrap()).sign(1, OWNER, ID).unwrap();
        for contents in ["", "format = 2"] {
            fs::write(&path, contents).unwrap();
            assert!(keyring.verify(forged.as_bytes()).is_err());
            assert!(keyring.verify(text.as_bytes()).is_ok());
        }
        fs::remove_file(&path).unwrap();
        assert!(keyring.verify(forged.as_bytes()).is_err() && keyring.verify(text.as_bytes()).is_ok());
    }
}
