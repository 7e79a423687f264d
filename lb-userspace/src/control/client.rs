//! lbctl's end of the control socket.

use super::wire::{self, MAX_ANSWER, WireError};
use super::{Request, Response};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tokio::io::BufReader;
use tokio::net::UnixStream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no lbd answers at {path}\nstart one with `lbd --config lb.toml`, or name the socket of another with --socket"
    )]
    NotRunning { path: PathBuf },
    #[error("{path} may be used by root alone\ntry again with sudo")]
    Denied { path: PathBuf },
    #[error("cannot reach lbd at {path}: {source}")]
    Unreachable { path: PathBuf, source: std::io::Error },
    #[error("lbd at {path} went away before it answered\nits log says why")]
    Gone { path: PathBuf },
    #[error("lbd at {path} cannot be understood: {source}")]
    Wire { path: PathBuf, source: WireError },
}

/// Asks the lbd at `path` one thing.
///
/// # Errors
/// [`ClientError`]; that lbd refused is an answer, not an error.
pub async fn ask(path: &Path, request: &Request) -> Result<Response, ClientError> {
    let path = path.to_owned();
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(source) => {
            return Err(match source.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NotRunning { path },
                ErrorKind::PermissionDenied => ClientError::Denied { path },
                _ => ClientError::Unreachable { path, source },
            });
        }
    };
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let gone = |source| match source {
        WireError::Io(_) | WireError::Truncated => ClientError::Gone { path: path.clone() },
        source => ClientError::Wire { path: path.clone(), source },
    };
    wire::write(&mut writer, request).await.map_err(gone)?;
    match wire::read(&mut reader, MAX_ANSWER).await.map_err(gone)? {
        Some(response) => Ok(response),
        None => Err(ClientError::Gone { path: path.clone() }),
    }
}
