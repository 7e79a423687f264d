//! TLS to a real redis-server: its own authority, a client's certificate, the server's name.

use super::{id, record};
use anyhow::{Context, Result};
use lb_userspace::session::{RedisOptions, RedisStore, RedisTls, SessionStore};
use tests::certificates::Certificates;
use tests::redis::{Place, Redis};

/// A server that speaks TLS on a second port and asks for a client's certificate; its port for TLS.
fn start(files: &Certificates) -> Result<(Redis, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let settings = files.redis_settings(port);
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok((Redis::start(Place::default(), 0, &settings)?, port))
}

fn tls(files: &Certificates) -> RedisTls {
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
    let files = Certificates::make("redis.example")?;
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
    let (files, others) = (Certificates::make("redis.example")?, Certificates::make("redis.example")?);
    let (redis, port) = start(&files)?;
    let right = || tls(&files);
    for (port, tls, told) in [
        (
            port,
            RedisTls { ca_file: Some(others.path("ca.pem")), ..right() },
            "signed its certificate with ca_file",
        ),
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
