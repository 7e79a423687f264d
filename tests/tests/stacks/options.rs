//! Both kernels must really have what was negotiated through the splice: timestamps, SACK and window scaling, in every
//! combination, told by TCP_INFO at both ends.

use anyhow::{Context, Result};
use lb_common::service::{PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE};
use tests::client::{Client, negotiated};
use tests::topology::{Arms, Host};
use tests::world::World;

/// Which options a kernel has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Has {
    timestamps: bool,
    sack: bool,
    window_scaling: bool,
}

const ALL: Has = Has { timestamps: true, sack: true, window_scaling: true };

fn combinations() -> impl Iterator<Item = Has> {
    (0..8).map(|bits| Has { timestamps: bits & 1 != 0, sack: bits & 2 != 0, window_scaling: bits & 4 != 0 })
}

fn set(world: &World, host: &Host, has: Has) -> Result<()> {
    world.town.tcp(host, "tcp_timestamps", u32::from(has.timestamps))?;
    world.town.tcp(host, "tcp_sack", u32::from(has.sack))?;
    world.town.tcp(host, "tcp_window_scaling", u32::from(has.window_scaling))
}

/// Sends a request and compares what both ends negotiated with what they should have.
fn check(world: &World, expected: Has) -> Result<()> {
    let mut client = Client::connect(&world.town.client.netns)?;
    assert_eq!(client.get("/", "")?.body, "b0");
    client.download(300_000)?;
    client.upload(300_000)?;
    let ours = negotiated(client.stream())?;
    let theirs = world.servers[0].with_last(negotiated).context("a request came")??;
    for (end, has) in [("client", ours), ("backend", theirs)] {
        assert_eq!((has.timestamps, has.sack), (expected.timestamps, expected.sack), "{end}: {has:?}");
        assert_eq!(has.window_scales.is_some(), expected.window_scaling, "{end}: {has:?}");
    }
    if let (Some((of_service, own)), Some((of_client, _))) = (ours.window_scales, theirs.window_scales) {
        assert_eq!(of_service, 7, "what the service promises");
        assert_eq!(of_client, own, "the client's own scale reaches the backend");
    }
    let header = if expected.timestamps { 12 } else { 0 };
    assert_eq!((ours.snd_mss, theirs.snd_mss), (1460 - header, 1460 - header));
    Ok(())
}

#[test]
fn what_the_client_has_is_negotiated() -> Result<()> {
    let world = World::new(Arms::Several, 1)?;
    for has in combinations() {
        set(&world, &world.town.client, has)?;
        check(&world, has).with_context(|| format!("client with {has:?}; {}", world.counts()))?;
    }
    Ok(())
}

/// The service promises only what its backends have.
#[test]
fn what_the_backends_lack_is_not_negotiated() -> Result<()> {
    let mut world = World::new(Arms::Several, 1)?;
    for has in combinations() {
        set(&world, &world.town.backends[0], has)?;
        let promise = |bit: u8, has: bool| if has { bit } else { 0 };
        world.balancer.change(|setup| {
            setup.services[0].promises = promise(PROMISE_TIMESTAMPS, has.timestamps)
                | promise(PROMISE_SACK, has.sack)
                | promise(PROMISE_WINDOW_SCALE, has.window_scaling);
        })?;
        check(&world, has).with_context(|| format!("backend with {has:?}; {}", world.counts()))?;
    }
    Ok(())
}

/// A backend that was changed after its abilities were found out: promises are broken, and still every byte arrives in time.
#[test]
fn broken_promises_cost_no_byte() -> Result<()> {
    let world = World::new(Arms::Several, 1)?;
    for has in combinations().filter(|has| *has != ALL) {
        set(&world, &world.town.backends[0], has)?;
        let run = || -> Result<()> {
            let mut client = Client::connect(&world.town.client.netns)?;
            client.download(2_000_000)?;
            client.upload(2_000_000)
        };
        run().with_context(|| format!("backend with {has:?}; {}", world.counts()))?;
        let abilities = world.balancer.maps.abilities(0)?;
        assert_eq!(abilities.promises & PROMISE_SACK != 0, has.sack, "{abilities:?}");
        assert_eq!(abilities.promises & PROMISE_TIMESTAMPS != 0, has.timestamps, "{abilities:?}");
        assert_eq!(abilities.promises & PROMISE_WINDOW_SCALE != 0, has.window_scaling, "{abilities:?}");
    }
    Ok(())
}

/// A small MSS, as behind a tunnel, is passed on to the backend.
#[test]
fn a_small_mss_reaches_the_backend() -> Result<()> {
    let world = World::new(Arms::Several, 1)?;
    world.town.client.netns.ip(&["link set eth0 mtu 1300"])?;
    let mut client = Client::connect(&world.town.client.netns)?;
    client.download(200_000)?;
    let theirs = world.servers[0].with_last(negotiated).context("a request came")??;
    assert_eq!(theirs.snd_mss, 1260 - 12);
    Ok(())
}
