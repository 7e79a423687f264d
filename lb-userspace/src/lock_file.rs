//! Files that one process locks for as long as it runs, with its process id in them. Mode 0600: `flock` needs no more than
//! an open file, so whoever could open one could keep the next process from starting.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Why a lock was not taken.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another process has it. Its process id, as it stands in the file; empty when it is not known.
    Held {
        pid: String,
    },
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Locks the file at `path` for this process, makes it private, and writes the process id into it. Does not wait.
///
/// # Errors
/// [`LockError::Held`] while another process has it.
pub(crate) fn take(path: &Path) -> Result<Flock<File>, LockError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    // One that another version made may be open to others.
    file.set_permissions(Permissions::from_mode(0o600))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())?;
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            // The id is for the message only.
            let _ = file.read_to_string(&mut pid);
            Err(LockError::Held { pid: pid.trim().to_owned() })
        }
        Err((_, errno)) => Err(LockError::Io(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_that_others_could_open_is_made_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        std::fs::write(&path, "1").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let lock = take(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let Err(LockError::Held { pid }) = take(&path) else { panic!("taken twice") };
        assert_eq!(pid, std::process::id().to_string());
        drop(lock);
        take(&path).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_a_lock_file_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("lock"), directory.path().join("other"));
        std::fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(matches!(take(&path), Err(LockError::Io(_))));
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
    }
}
