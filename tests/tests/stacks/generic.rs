//! Generic XDP, for interfaces whose driver has none.

use anyhow::{Context, Result};
use aya::programs::XdpMode;
use tests::balancer::Balancer;
use tests::client::Client;
use tests::object::Sizes;
use tests::server::Server;
use tests::topology::{Arms, Topology};

#[test]
fn requests_and_bulk_pass_in_generic_mode() -> Result<()> {
    for arms in [Arms::Several, Arms::One] {
        let town = Topology::new(arms, 1)?;
        let _server = Server::start(&town.backends[0], "b0")?;
        let setup = Balancer::setup_of(&town, Sizes::large());
        let balancer = Balancer::start_in(&town, setup, XdpMode::Skb)?;
        let counts = || format!("{arms:?}: {:?}", balancer.maps.counts().ok());
        let mut client = Client::connect(&town.client.netns).with_context(counts)?;
        assert_eq!(client.get("/", "").with_context(counts)?.body, "b0");
        client.download(2 << 20).with_context(counts)?;
        client.upload(2 << 20).with_context(counts)?;
        for host in town.hosts() {
            assert_eq!(host.netns.counter("TcpInCsumErrors")?, 0, "in {}", host.netns);
        }
    }
    Ok(())
}
