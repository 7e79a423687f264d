//! The fixture itself: what it starts is there, and what it kills is gone.

use anyhow::Result;
use tests::netns::Netns;
use tests::redis::{Place, Redis};

#[test]
fn a_server_keeps_what_it_acknowledged_through_kill_and_restart() -> Result<()> {
    let mut redis = Redis::single()?;
    redis.ask(0, &["SET", "k", "v"])?;
    redis.kill(0)?;
    assert!(redis.ask(0, &["PING"]).is_err());
    redis.restart(0)?;
    assert_eq!(redis.ask(0, &["GET", "k"])?, "v");
    Ok(())
}

#[test]
fn another_namespace_has_a_server_of_its_own() -> Result<()> {
    let place = Place { netns: Some(Netns::new("redis")?), ..Place::default() };
    let redis = Redis::start(place, 1, &[("maxmemory", "100mb")])?;
    assert_eq!(redis.primaries(), [0]);
    assert!(redis.ask(0, &["CONFIG", "GET", "maxmemory"])?.contains("104857600"));
    assert!(std::net::TcpStream::connect(redis.addr(0)).is_err(), "it listens here as well");
    Ok(())
}

#[test]
fn a_cluster_elects_another_primary() -> Result<()> {
    let mut redis = Redis::cluster()?;
    assert_eq!(redis.primaries(), [0, 1, 2]);
    redis.kill(1)?;
    redis.await_cluster()?;
    assert_eq!(redis.primaries(), [0, 2, 4]);
    redis.restart(1)?;
    redis.await_cluster()?;
    assert_eq!(redis.primaries(), [0, 2, 4]);
    Ok(())
}
