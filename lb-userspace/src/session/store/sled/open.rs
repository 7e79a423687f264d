//! Opens the database, whatever a crash or a full disk has left of an earlier opening. sled 0.34 takes the snapshot with
//! the last name for the newest, a half-written `snap.*.generating` included, and refuses a database whose snapshot is
//! damaged, although its log has everything. Called with the directory's lock held.

use super::trees::SEGMENT_BYTES;
use super::{FORMAT, FORMAT_KEY, SledOptions, StoreError};
use crate::panics;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sled::Db;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long sled's own threads may take to let go of the files of a database that was closed.
const RELEASE: Duration = Duration::from_secs(5);
/// The file that sled appends everything to.
const LOG: &str = "db";
/// The file that sled keeps its settings in.
const SETTINGS: &str = "conf";
/// The file that is locked while the store is open.
pub(super) const LOCK: &str = "lock";
/// What the names of sled's snapshots begin with...
const SNAPSHOT: &str = "snap.";
/// ...and of those that are not whole yet, end with.
const UNFINISHED: &str = ".generating";
/// What is put in front of the names of damaged snapshots.
const SET_ASIDE: &str = "damaged-";

fn io_error(path: &Path, what: impl std::fmt::Display) -> impl Fn(io::Error) -> StoreError {
    let what = what.to_string();
    move |error| StoreError::Open { path: path.into(), reason: format!("{what}: {error}") }
}

/// Makes the directory, mode 0700, or makes one that is there private.
pub(super) fn directory(path: &Path) -> Result<(), StoreError> {
    let refused = |reason: String| StoreError::Open { path: path.into(), reason };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error(path, "cannot create its directory"))?;
    let found = fs::metadata(path).map_err(io_error(path, "cannot look at its directory"))?;
    let me = nix::unistd::geteuid().as_raw();
    if found.uid() != me {
        let (shown, owner) = (path.display(), found.uid());
        return Err(refused(format!(
            "its directory belongs to user {owner}, who can read all sessions: chown -R {me} {shown}"
        )));
    }
    if found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let is_ours = path.join(LOG).exists() || names(path)?.iter().all(|name| name == LOCK);
    if !is_ours {
        return Err(refused(format!(
            "others can read its directory, which holds other files than a store: choose a directory of its own, or \
             chmod 700 {}",
            path.display()
        )));
    }
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(io_error(path, format!("others can read its directory: chmod 700 {}", path.display())))?;
    tracing::warn!(path = %path.display(), "others could read the directory of the session store: its mode is 0700 now");
    Ok(())
}

/// The log, to be held for as long as the database is open: a descriptor hears of each failed write-back since it
/// was opened, and of none before.
pub(super) fn log(path: &Path) -> Result<File, StoreError> {
    let file = path.join(LOG);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(&file).map_err(io_error(path, format!("cannot open {}", file.display())))
}

/// Opens the database. `log` is its log.
pub(super) fn database(path: &Path, options: SledOptions, log: &File) -> Result<Db, StoreError> {
    if log.metadata().is_ok_and(|log| log.len() == 0) {
        // Nothing depends on it yet, and it may be half-written.
        let _ = fs::remove_file(path.join(SETTINGS));
    }
    for name in names(path)? {
        if name.starts_with(SNAPSHOT) && name.ends_with(UNFINISHED) {
            let file = path.join(&name);
            fs::remove_file(&file).map_err(io_error(path, format!("cannot remove {}", file.display())))?;
            tracing::warn!(file = %file.display(), "removed: an earlier start of the session store was interrupted");
        }
    }
    let opened = match open(path, options) {
        Err(Failure::Damaged(reason)) if !newest_snapshot_is_whole(path)? => {
            without_snapshots(path, options, &reason)
        }
        opened => opened.map_err(|failure| failure.of(path)),
    }?;
    make_files_private(path)?;
    Ok(opened)
}

/// After a failed write-back the kernel may show pages that are not on the disk. Those that are not written yet are
/// written, and all are read from the disk from here on.
pub(super) fn forget_cached_pages(path: &Path, log: &File) -> Result<(), StoreError> {
    log.sync_data().map_err(io_error(path, "cannot sync its log"))?;
    posix_fadvise(log, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|errno| io_error(path, "cannot drop its log from memory")(errno.into()))
}

/// Sets all snapshots aside, and lets sled read its whole log. They come back if that fails, too.
fn without_snapshots(path: &Path, options: SledOptions, reason: &str) -> Result<Db, StoreError> {
    let damaged = || Failure::Damaged(reason.to_owned()).of(path);
    let snapshots = || -> Result<Vec<String>, StoreError> {
        Ok(names(path)?.into_iter().filter(|name| name.starts_with(SNAPSHOT)).collect())
    };
    let moved: Vec<_> = snapshots()?
        .into_iter()
        .map(|name| (path.join(&name), path.join(format!("{SET_ASIDE}{name}"))))
        .collect();
    if moved.is_empty() {
        return Err(damaged());
    }
    for (from, to) in &moved {
        fs::rename(from, to).map_err(io_error(path, format!("cannot set {} aside", from.display())))?;
        tracing::error!(
            reason,
            snapshot = %to.display(),
            "the snapshot of the session store is damaged and was set aside; reading the whole log in its place"
        );
    }
    // A log that cannot be read at all is an empty one to sled.
    let opened = open(path, options).and_then(|db| match db.get(FORMAT_KEY) {
        Ok(Some(_)) => Ok(db),
        _ => Err(Failure::Damaged("nothing in it can be read".into())),
    });
    match opened {
        Ok(db) => {
            tracing::warn!(path = %path.display(), "the session store was read from its whole log");
            Ok(db)
        }
        Err(failure) => {
            for name in snapshots()? {
                let _ = fs::remove_file(path.join(name));
            }
            for (from, to) in &moved {
                fs::rename(to, from).map_err(io_error(path, format!("cannot put {} back", to.display())))?;
            }
            Err(failure.of(path))
        }
    }
}

/// Whether the snapshot that sled takes is as sled wrote it: content, its length, 8 bytes, and its CRC, 4 bytes, little
/// endian. Then it is not what is damaged.
fn newest_snapshot_is_whole(path: &Path) -> Result<bool, StoreError> {
    let Some(name) = names(path)?.into_iter().rfind(|name| name.starts_with(SNAPSHOT)) else {
        return Ok(true);
    };
    let file = path.join(name);
    let bytes = fs::read(&file).map_err(io_error(path, format!("cannot read {}", file.display())))?;
    Ok(bytes.split_last_chunk().is_some_and(|(rest, crc)| {
        rest.split_last_chunk::<8>().is_some_and(|(content, _)| {
            !content.is_empty() && crc32fast::hash(content) == u32::from_le_bytes(*crc)
        })
    }))
}

/// Why sled did not open.
enum Failure {
    /// What is on the disk does not fit together.
    Damaged(String),
    Other(StoreError),
}

impl Failure {
    fn of(self, path: &Path) -> StoreError {
        match self {
            Self::Damaged(reason) => StoreError::Open {
                path: path.into(),
                reason: format!(
                    "its log is damaged ({reason}): take a backup of the directory back, or move it away to begin an empty one"
                ),
            },
            Self::Other(error) => error,
        }
    }
}

/// A lock that is still held is held by threads of a database that this process has just closed; they tell nobody when
/// they are done.
fn open(path: &Path, options: SledOptions) -> Result<Db, Failure> {
    let config = sled::Config::new()
        .path(path)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(options.cache_bytes)
        .flush_every_ms(None);
    let give_up = Instant::now() + RELEASE;
    loop {
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
            .map_err(|panic| Failure::Damaged(panics::message(&*panic)))?;
        let error = match opened {
            Ok(db) => return Ok(db),
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && Instant::now() < give_up =>
            {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            Err(error) => error,
        };
        return Err(match error {
            sled::Error::Unsupported(reason) => Failure::Other(StoreError::Format {
                path: path.into(),
                found: reason,
                expected: format!("sled 0.34, format {FORMAT}"),
            }),
            sled::Error::Corruption { .. } | sled::Error::ReportableBug(_) => {
                Failure::Damaged(error.to_string())
            }
            error => Failure::Other(StoreError::Open { path: path.into(), reason: error.to_string() }),
        });
    }
}

fn make_files_private(path: &Path) -> Result<(), StoreError> {
    for name in names(path)? {
        let file = path.join(name);
        let found = match fs::symlink_metadata(&file) {
            Ok(found) => found,
            // sled removes what it no longer needs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io_error(path, format!("cannot look at {}", file.display()))(error)),
        };
        let mode = if found.is_dir() { 0o700 } else { 0o600 };
        if !found.is_symlink() && found.mode() & 0o077 != 0 {
            fs::set_permissions(&file, Permissions::from_mode(mode))
                .map_err(io_error(path, format!("others can read it: chmod {mode:o} {}", file.display())))?;
        }
    }
    Ok(())
}

/// Of what is in the directory itself.
fn names(path: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(io_error(path, "cannot list its directory"))?;
    let mut names: Vec<_> =
        entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}
