//! TLS to a real redis-server: its own authority, a client's certificate, the server's name.

use super::{id, record};
use anyhow::{Context, Result};
use lb_userspace::session::{RedisOptions, RedisStore, RedisTls, SessionStore};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use tests::redis::{Place, Redis};

/// PEM files of an authority, and of a server and a client that it signed.
struct Files(tempfile::TempDir);

impl Files {
    fn make(server_name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, dir.path().display().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        std::fs::write(dir.path().join("ca.pem"), authority.pem())?;
        for (file, name) in [("server", server_name), ("client", "lbd")] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![name.to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority)?;
            std::fs::write(dir.path().join(format!("{file}.pem")), certificate.pem())?;
            std::fs::write(dir.path().join(format!("{file}.key")), key.serialize_pem())?;
        }
        Ok(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

/// A server that speaks TLS on a second port and asks for a client's certificate; its port for TLS.
fn start(files: &Files) -> Result<(Redis, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let settings = [
        ("tls-port", port.to_string()),
        ("tls-cert-file", files.text("server.pem")),
        ("tls-key-file", files.text("server.key")),
        ("tls-ca-cert-file", files.text("ca.pem")),
        ("tls-auth-clients", "yes".into()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok((Redis::start(Place::default(), 0, &settings)?, port))
}

fn tls(files: &Files) -> RedisTls {
    RedisTls {
        ca_file: Some(files.path("ca.pem")),
        cert_file: Some(files.path("client.pem")),
        key_file: Some(files.path("client.key")),
        server_name: Some("redis.example".into()),
    }
}

async fn open(port: u16, tls: RedisTls) -> Result<RedisStore> {
    let nodes = vec![format!("rediss://127.0.0.1:{port}")];
    Ok(RedisStore::open(RedisOptions { nodes, tls, ..RedisOptions::default() }).await?)
}

#[tokio::test]
async fn sessions_go_through_tls_with_a_clients_certificate() -> Result<()> {
    let files = Files::make("redis.example")?;
    let (redis, port) = start(&files)?;
    let store = open(port, tls(&files)).await?;
    store.save(id(1), &record(1, "a"), None).await?;
    assert_eq!(store.load(id(1)).await?.context("it was saved")?.state, record(1, "a").state);
    let clients = redis.ask(0, &["CLIENT", "LIST", "TYPE", "normal"])?;
    assert!(clients.contains(&format!("laddr=127.0.0.1:{port}")), "{clients}");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_tls_is_told_with_what_to_do() -> Result<()> {
    let (files, others) = (Files::make("redis.example")?, Files::make("redis.example")?);
    let (redis, port) = start(&files)?;
    let right = || tls(&files);
    let elsewhere = |file: &str| -> Option<PathBuf> { Some(Path::new(&others.text(file)).to_owned()) };
    for (port, tls, told) in [
        (port, RedisTls { ca_file: elsewhere("ca.pem"), ..right() }, "signed its certificate with ca_file"),
        (port, RedisTls { server_name: Some("other.example".into()), ..right() }, "is for with server_name"),
        (port, RedisTls { server_name: None, ..right() }, "is for with server_name"),
        (port, RedisTls { cert_file: None, key_file: None, ..right() }, "cert_file and key_file"),
        // It waits for the end of a line.
        (redis.addr(0).port(), right(), "does not answer"),
    ] {
        let error = open(port, tls.clone()).await.err().context("it was not refused")?.to_string();
        assert!(error.contains(told), "{tls:?}: {error}");
    }
    Ok(())
}
