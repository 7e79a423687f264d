//! The daemon's end of the control socket: takes connections, reads requests one after the other, and hands each to the
//! event loop, which answers.

use super::wire::{self, MAX_LINE, WireError};
use super::{Refused, Request, Response};
use crate::lock_file::{self, LockError};
use nix::fcntl::Flock;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// A request, and where its answer goes.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub reply: oneshot::Sender<Response>,
    /// For a request that is answered again and again: where everything behind the first answer goes, until it is closed.
    pub follow: Option<mpsc::Sender<Response>>,
}

/// How long a connection may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections at the same time; more wait.
const MAX_CONNECTIONS: usize = 64;

/// Messages that one who follows may be behind.
const MAX_BEHIND: usize = 256;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "another lbd{} has {path}: stop it first, or set another `socket` in the configuration",
        if pid.is_empty() { String::new() } else { format!(", process {pid},") }
    )]
    InUse { path: PathBuf, pid: String },
    #[error("{path} is there and is no socket: move it away, or set another `socket` in the configuration")]
    NoSocket { path: PathBuf },
    #[error("cannot open the control socket {path}: {source}")]
    Open { path: PathBuf, source: std::io::Error },
}

/// The control socket. Removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Of two that start at the same time, one has it.
    _lock: Flock<File>,
}

impl ControlSocket {
    /// Opens the socket (mode 0600); takes the place of one that a dead lbd left.
    ///
    /// # Errors
    /// [`SocketError`]; [`SocketError::InUse`] while an lbd lives there.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let open = |source| SocketError::Open { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(open)?;
        }
        let lock = lock_file::take(&lock_path(path)).map_err(|error| match error {
            LockError::Held { pid } => SocketError::InUse { path: path.to_owned(), pid },
            LockError::Io(error) => open(error),
        })?;
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NoSocket { path: path.to_owned() });
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                // One of a version that has no lock.
                Ok(_) => return Err(SocketError::InUse { path: path.to_owned(), pid: String::new() }),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(open)?;
                }
                Err(error) => return Err(open(error)),
            },
            Err(_) => {}
        }
        // Bound under a name that nobody knows until its mode is right, so that no moment leaves it open to others.
        let hidden = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden).map_err(open)?;
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600)).map_err(open)?;
        std::fs::rename(&hidden, path).map_err(open)?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// Serves connections for as long as it is polled.
    pub async fn serve(&self, calls: mpsc::UnboundedSender<Call>) {
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, calls).await {
                            tracing::debug!(%error, "control connection ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: accepting again at once would only spin.
                    tracing::warn!(%error, "cannot take a control connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Nobody can do anything about a socket that stays; the next lbd finds that nobody answers there.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The file that is locked for a socket, beside it.
fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

async fn converse(stream: UnixStream, calls: mpsc::UnboundedSender<Call>) -> Result<(), WireError> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let request = match tokio::time::timeout(PATIENCE, wire::read(&mut reader, MAX_LINE)).await {
            Err(_) | Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(request))) => request,
            Ok(Err(error)) => {
                // The rest of the stream cannot be trusted to begin at a message.
                wire::write(&mut writer, &Response::Refused(Refused::new(error.to_string()))).await?;
                return Err(error);
            }
        };
        let (reply, answer) = oneshot::channel();
        let (follow, following) = match &request {
            Request::Trace { .. } => Some(mpsc::channel(MAX_BEHIND)).unzip(),
            _ => (None, None),
        };
        let asked = calls.send(Call { request, reply, follow }).is_ok();
        let response = match answer.await {
            Ok(response) if asked => response,
            _ => Response::Refused(Refused::new("lbd is stopping")),
        };
        wire::write(&mut writer, &response).await?;
        if let Some(following) = following
            && !matches!(response, Response::Refused(_))
        {
            return relay(&mut reader, &mut writer, following).await;
        }
    }
}

/// Writes whatever comes, until nothing more comes or the peer leaves.
async fn relay(
    reader: &mut (impl AsyncBufRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    mut messages: mpsc::Receiver<Response>,
) -> Result<(), WireError> {
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Some(message) => wire::write(writer, &message).await?,
                None => return Ok(()),
            },
            // It has nothing more to say: this is its end.
            _ = reader.fill_buf() => return Ok(()),
        }
    }
}
