//! A backend that takes a safe request and leaves without a word: another one answers, and the client never knows.

use anyhow::{Context, Result};
use lb_common::counter::Counter;
use std::io::Read;
use std::net::TcpListener;
use tests::client::{Client, get};
use tests::server::Server;
use tests::topology::Arms;
use tests::world::World;

/// A server that takes the request and hangs up: with a FIN when it has read it, with an RST when it has not.
fn rude(listener: &TcpListener, read: bool) {
    while let Ok((mut stream, _)) = listener.accept() {
        if read {
            let _ = stream.read(&mut [0; 4096]);
        } else {
            // Closed with unread data: the kernel resets.
            let _ = stream.peek(&mut [0]);
        }
    }
}

#[test]
fn real_clients_do_not_notice() -> Result<()> {
    for read in [true, false] {
        let mut world = World::silent(Arms::Several, 2)?;
        world.balancer.change(|setup| setup.services[0].replay = 1)?;
        world.servers.push(Server::start(&world.town.backends[1], "b1")?);
        let address = world.town.backends[0].serves();
        let listener = world.town.backends[0].netns.run(|| TcpListener::bind(address))?;
        let shutdown = listener.try_clone()?;
        let host = std::thread::spawn(move || rude(&listener, read));
        let cookie = format!("Cookie: lb={}\r\n", world.balancer.setup.token(0, 7));
        for _ in 0..50 {
            assert_eq!(get(&world.town.client.netns, &cookie).with_context(|| world.counts())?, "b1");
        }
        let mut client = Client::connect(&world.town.client.netns)?;
        assert_eq!(client.get("/", &cookie)?.body, "b1");
        client.download(300_000)?;
        client.upload(300_000)?;
        let counts = world.balancer.maps.counts()?;
        assert_eq!(counts.get(Counter::Replayed), 51, "{counts:?}");
        assert_eq!(world.town.client.netns.counter("TcpExtPAWSEstab")?, 0);
        assert_eq!(world.balancer.maps.stashes()?.len(), 0, "every stash was given back");
        socket2::SockRef::from(&shutdown).shutdown(std::net::Shutdown::Both)?;
        host.join().expect("the rude server does not panic");
    }
    Ok(())
}
