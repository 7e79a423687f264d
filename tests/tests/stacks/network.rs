//! The town itself, before there is a balancer in it.

use anyhow::Result;
use tests::client::WATCHDOG;
use tests::server::Server;
use tests::topology::{Arms, Topology};

#[test]
fn client_and_backends_reach_each_other_through_the_balancer() -> Result<()> {
    for arms in [Arms::Several, Arms::One] {
        let town = Topology::new(arms, 2)?;
        for backend in &town.backends {
            let _server = Server::start(backend, "b")?;
            let connect = || std::net::TcpStream::connect_timeout(&backend.serves().into(), WATCHDOG);
            town.client.netns.run(connect)?;
        }
        assert_eq!(town.ports().len(), if arms == Arms::One { 1 } else { 3 });
        assert_eq!(town.client.netns.counter("TcpActiveOpens")?, 2);
    }
    Ok(())
}
