//! lbctl's end of the control socket.

use super::wire::{self, MAX_ANSWER, WireError};
use super::{Request, Response};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

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
    #[error(
        "lbd at {path} has not answered within {limit:?}\nit may be busy or halted: its log and `ps` tell more; `--timeout 1m` waits \
         longer"
    )]
    Late { path: PathBuf, limit: Duration },
    #[error("lbd at {path} cannot be understood: {source}")]
    Wire { path: PathBuf, source: WireError },
}

/// Asks the lbd at `path` one thing. It may take `patience`, and as long as what is asked for takes by itself.
///
/// # Errors
/// [`ClientError`]; that lbd refused is an answer, not an error.
pub async fn ask(path: &Path, request: &Request, patience: Duration) -> Result<Response, ClientError> {
    Ok(follow(path, request, patience).await?.0)
}

/// Asks the lbd at `path` for what it answers again and again: the first answer, and where the others come from.
///
/// # Errors
/// As [`ask`].
pub async fn follow(
    path: &Path,
    request: &Request,
    patience: Duration,
) -> Result<(Response, Answers), ClientError> {
    let limit = patience + request.takes();
    let late = |_| ClientError::Late { path: path.to_owned(), limit };
    tokio::time::timeout(limit, begin(path, request)).await.map_err(late)?
}

async fn begin(path: &Path, request: &Request) -> Result<(Response, Answers), ClientError> {
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
    let (reader, writer) = stream.into_split();
    let mut answers = Answers { path, reader: BufReader::new(reader), line: Vec::new(), writer };
    wire::write(&mut answers.writer, request).await.map_err(|source| answers.gone(source))?;
    let first = answers.next().await?;
    Ok((first, answers))
}

/// What lbd says on one connection.
#[derive(Debug)]
pub struct Answers {
    path: PathBuf,
    reader: BufReader<OwnedReadHalf>,
    /// What has come of the next answer.
    line: Vec<u8>,
    /// As long as it is open, lbd goes on.
    writer: OwnedWriteHalf,
}

impl Answers {
    /// The next answer. May be dropped before it has come, and asked again.
    ///
    /// # Errors
    /// As [`ask`].
    pub async fn next(&mut self) -> Result<Response, ClientError> {
        let read = wire::read_on(&mut self.reader, MAX_ANSWER, &mut self.line).await;
        match read.map_err(|source| self.gone(source))? {
            Some(response) => Ok(response),
            None => Err(ClientError::Gone { path: self.path.clone() }),
        }
    }

    fn gone(&self, source: WireError) -> ClientError {
        let path = self.path.clone();
        match source {
            WireError::Io(_) | WireError::Truncated => ClientError::Gone { path },
            source => ClientError::Wire { path, source },
        }
    }
}
