//! QUIC servers and clients in namespaces, with quinn as it is, and connection ids of ours.

use crate::netns::Netns;
use crate::topology::Host;
use anyhow::{Context, Result, anyhow};
use lb_userspace::quic::QuicLbIds;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig,
};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// What clients ask for.
const NAME: &str = "quic.test";
/// No answer within that time is none.
const PATIENCE: Duration = Duration::from_secs(60);

/// A certificate that servers have and clients trust.
#[derive(Clone)]
pub struct Trust {
    server: ServerConfig,
    client: ClientConfig,
}

impl Trust {
    pub fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        let certificate = CertificateDer::from(made.cert);
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(Some(Duration::from_secs(120).try_into()?));
        let transport = Arc::new(transport);
        let mut server = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
        server.transport_config(transport.clone());
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let mut client = ClientConfig::with_root_certificates(Arc::new(roots))?;
        client.transport_config(transport);
        Ok(Self { server, client })
    }
}

/// A server that tells its name, and how often the connection has asked: what it remembers is in its memory alone.
pub struct Server {
    endpoint: Endpoint,
}

impl Server {
    /// Listens where a backend serves, with ids that name it. Needs a runtime around it.
    pub fn start(host: &Host, name: &str, ids: &QuicLbIds, trust: &Trust) -> Result<Self> {
        let mut config = EndpointConfig::default();
        let ids = ids.clone();
        config.cid_generator(move || Box::new(ids.clone()));
        let socket = bind(&host.netns, host.serves())?;
        let endpoint = Endpoint::new(config, Some(trust.server.clone()), socket, Arc::new(TokioRuntime))?;
        let (accepting, name) = (endpoint.clone(), name.to_owned());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let name = name.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        serve(&connection, &name).await;
                    }
                });
            }
        });
        Ok(Self { endpoint })
    }

    /// Connections that live here.
    pub fn connections(&self) -> usize {
        self.endpoint.open_connections()
    }
}

async fn serve(connection: &Connection, name: &str) {
    let mut asked = 0;
    while let Ok((mut answer, mut question)) = connection.accept_bi().await {
        if question.read_to_end(1 << 20).await.is_err() {
            continue;
        }
        asked += 1;
        // A client that does not wait for the answer has gone.
        if answer.write_all(format!("{name} {asked}").as_bytes()).await.is_ok() {
            let _ = answer.finish();
        }
    }
}

/// One socket of a client.
pub struct Client {
    endpoint: Endpoint,
}

impl Client {
    /// At a port of the system's choice. Needs a runtime around it.
    pub fn new(netns: &Netns, ip: Ipv4Addr, trust: &Trust) -> Result<Self> {
        let socket = bind(netns, SocketAddrV4::new(ip, 0))?;
        let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
        endpoint.set_default_client_config(trust.client.clone());
        Ok(Self { endpoint })
    }

    pub async fn connect(&self, to: SocketAddrV4) -> Result<Connection> {
        let connecting = self.endpoint.connect(SocketAddr::V4(to), NAME)?;
        Ok(tokio::time::timeout(PATIENCE, connecting).await.context("no connection in time")??)
    }

    /// Goes on with all connections from another socket.
    pub fn move_to(&self, netns: &Netns, ip: Ipv4Addr) -> Result<()> {
        Ok(self.endpoint.rebind(bind(netns, SocketAddrV4::new(ip, 0))?)?)
    }
}

/// Sends so many bytes; returns who answered, and how often this connection had asked.
pub async fn ask(connection: &Connection, bytes: usize) -> Result<(String, u32)> {
    let exchange = async {
        let (mut question, mut answer) = connection.open_bi().await?;
        question.write_all(&vec![7; bytes]).await?;
        question.finish()?;
        Ok::<_, anyhow::Error>(answer.read_to_end(64).await?)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time");
    let answer = answer.and_then(|answer| answer).with_context(|| told(connection))?;
    let text = String::from_utf8(answer)?;
    let (name, asked) = text.split_once(' ').ok_or_else(|| anyhow!("`{text}` is no answer"))?;
    Ok((name.to_owned(), asked.parse()?))
}

/// How a connection fares, for whoever must find out what became of it.
fn told(connection: &Connection) -> String {
    let stats = connection.stats();
    format!(
        "connection {}: {}; {} datagrams sent, {} received; of {} packets {} lost, round trip {:?}",
        connection.stable_id(),
        connection.close_reason().map_or("open".to_owned(), |reason| reason.to_string()),
        stats.udp_tx.datagrams,
        stats.udp_rx.datagrams,
        stats.path.sent_packets,
        stats.path.lost_packets,
        stats.path.rtt
    )
}

/// With room for what hundreds of connections send when they all move at once: the usual room holds 90 datagrams that are as long as
/// those which validate a path (RFC 9000 §8.2.1), and one that is lost then is not sent again before a probe asks for it.
fn bind(netns: &Netns, at: SocketAddrV4) -> Result<UdpSocket> {
    const ROOM: usize = 16 << 20;
    let socket = netns.run(|| UdpSocket::bind(at)).with_context(|| format!("binding {at}"))?;
    setsockopt(&socket, RcvBufForce, &ROOM).context("room for datagrams")?;
    Ok(socket)
}
