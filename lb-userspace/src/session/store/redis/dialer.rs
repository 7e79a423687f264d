//! How connections to the servers are made: TCP, TLS where it is asked for, login.

use super::options::{Addr, Login};
use super::tls::RedisTls;
use redis::AsyncConnectionConfig;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Pipeline, RedisResult, Value};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// How to connect, and for how long to wait for what.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) login: Login,
    /// `None`: in the clear.
    pub(super) tls: Option<RedisTls>,
    pub(super) connect: Duration,
    /// Until a batch is answered that does not wait for a disk.
    pub(super) answer: Duration,
    /// Until the replicas have it; shorter.
    pub(super) replicas: Duration,
    /// Until the disks have it, and then a batch is answered. The first begins when the replicas have
    /// it; servers with `appendfsync everysec` take up to two seconds.
    pub(super) disk: [Duration; 2],
}

impl Dialer {
    pub(super) fn new(login: Login, tls: Option<RedisTls>, deadline: Duration) -> Self {
        Self {
            login,
            tls,
            connect: deadline / 4,
            answer: deadline / 2,
            replicas: deadline / 5,
            disk: [deadline * 5 / 8, deadline * 7 / 8],
        }
    }

    pub(super) async fn dial(&self, addr: &Addr) -> Result<Connection, String> {
        match tokio::time::timeout(self.connect * 2, self.connect(addr)).await {
            Ok(connected) => {
                connected.map_err(|error| format!("cannot connect to redis node {addr}: {error}"))
            }
            Err(_) => Err(format!("redis node {addr} does not answer")),
        }
    }

    async fn connect(&self, addr: &Addr) -> Result<Connection, String> {
        let stream = TcpStream::connect((addr.host.as_str(), addr.port)).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return self.log_in(stream).await };
        let name = tls.name_of(&addr.host)?;
        let tls = tls.clone();
        // The files are read on a thread that may wait for a disk.
        let connector =
            tokio::task::spawn_blocking(move || tls.load()).await.map_err(|e| e.to_string())??;
        let stream = connector.connect(name, stream).await.map_err(|error| told(&error.to_string()))?;
        self.log_in(stream).await.map_err(|error| told(&error))
    }

    async fn log_in<S>(&self, stream: S) -> Result<Connection, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // A batch has a timeout of its own.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let made = MultiplexedConnection::new_with_config(&self.login.info(), stream, config).await;
        let (inner, driver) = made.map_err(|error| error.to_string())?;
        Ok(Connection { inner, driver: tokio::spawn(driver).abort_handle() })
    }
}

/// What went wrong with TLS, and what to do about it.
fn told(error: &str) -> String {
    let cures = [
        ("UnknownIssuer", "name the authority that signed its certificate with ca_file"),
        ("NotValidForName", "name what its certificate is for with server_name"),
        ("not valid for name", "name what its certificate is for with server_name"),
        ("CertificateRequired", "it asks for a client's certificate: name one with cert_file and key_file"),
        ("corrupt message", "does it speak TLS on this port?"),
    ];
    let cure = cures.iter().find(|(sign, _)| error.contains(sign));
    format!("TLS: {error}{}", cure.map(|(_, cure)| format!(" ({cure})")).unwrap_or_default())
}

/// A connection, closed when dropped, whatever is still awaited on it.
pub(super) struct Connection {
    inner: MultiplexedConnection,
    driver: AbortHandle,
}

impl Connection {
    /// All answers; an error of the server is one of them.
    pub(super) async fn ask(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        self.inner.req_packed_commands(pipeline, 0, pipeline.len()).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
