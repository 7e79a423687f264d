//! The shortest way through everything: one client, one request, one backend.

use anyhow::Result;
use lb_common::counter::Counter;
use tests::balancer::{Balancer, dial};
use tests::client::get;
use tests::frame::{ACK, SYN, Segment};
use tests::object::Sizes;
use tests::runner::{Runner, Verdict};
use tests::server::Server;
use tests::setup::Setup;
use tests::topology::{Arms, Topology};

#[test]
fn a_syn_is_answered() -> Result<()> {
    let mut setup = Setup::new(Sizes::default());
    setup.service(dial());
    let runner = Runner::new(setup)?;
    let syn = Segment::syn("10.0.1.2:40000".parse()?, dial(), 1_000);
    let outcome = runner.xdp(&syn.bytes())?;
    assert_eq!(outcome.counted, [(Counter::SynAnswered, 1)], "{outcome:?}");
    assert!(matches!(outcome.verdict, Verdict::Redirect | Verdict::Tx), "{outcome:?}");
    let answer = outcome.segment();
    assert_eq!((answer.src, answer.dst), (syn.dst, syn.src));
    assert_eq!((answer.src_mac, answer.dst_mac), (syn.dst_mac, syn.src_mac));
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, 1_001));
    Ok(())
}

#[test]
fn a_request_is_answered() -> Result<()> {
    for arms in [Arms::Several, Arms::One] {
        let town = Topology::new(arms, 1)?;
        let balancer = Balancer::start(&town)?;
        let _server = Server::start(&town.backends[0], "b0")?;
        let body = get(&town.client.netns, "");
        let counts = balancer.maps.counts()?;
        assert_eq!(body.map_err(|e| e.context(format!("{arms:?}: {counts:?}")))?, "b0");
        assert_eq!(counts.get(Counter::Spliced), 1, "{counts:?}");
    }
    Ok(())
}
