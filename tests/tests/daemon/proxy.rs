//! Clients that begin with a header of the PROXY protocol, in front of servers that want one: curl, nginx, and lbd between them.

use anyhow::{Context, Result, ensure};
use std::process::Output;
use tests::client::Client;
use tests::daemon::{Backend, Lbd, Manner};
use tests::nginx::Nginx;
use tests::topology::{Arms, Topology, VIP};

/// A town of servers that want a header, and tell who they are and whose address stands in it; each sets a cookie of its own.
fn begin(affinity: &str) -> Result<(Topology, Vec<Nginx>, Lbd)> {
    let town = Topology::new(Arms::Several, 3)?;
    let mut servers = Vec::new();
    for (i, host) in town.backends.iter().enumerate() {
        let http = "map $cookie_sid $fresh { \"\" \"sid=$request_id; Path=/\"; }";
        let server = format!(
            "add_header Set-Cookie $fresh; location / {{ return 200 \"b{i} $proxy_protocol_addr\"; }}"
        );
        servers.push(Nginx::start_as(host, "proxy_protocol", http, &server)?);
    }
    let backends: Vec<_> = town.backends.iter().map(Backend::Remote).collect();
    let more = Some("accept_proxy = true".to_owned());
    let manner = Manner { affinity: Some(affinity.to_owned()), more, ..Manner::default() };
    let lbd = Lbd::start_in(&town, &backends, manner)?;
    Ok((town, servers, lbd))
}

fn curl(town: &Topology, lbd: &Lbd, args: &[&str]) -> Result<Output> {
    let jar = lbd.dir().join("jar").display().to_string();
    let mut curl = town.client.netns.command("curl");
    curl.args(["--silent", "--max-time", "5", "-b", &jar, "-c", &jar])
        .args(args)
        .arg(format!("http://{VIP}/"));
    curl.output().context("starting curl")
}

/// A header of version 2 for a client with that address.
fn v2(client: [u8; 4]) -> Vec<u8> {
    let ports = [0x9c, 0x40, 0, 80];
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &client, &VIP.octets(), &ports].concat()
}

/// Asks on a connection of its own, behind a header; who answered, and whom it takes for its client.
fn ask(town: &Topology, header: &[u8]) -> Result<(String, String)> {
    let mut client = Client::connect(&town.client.netns)?;
    client.send(header)?;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let response = client.response()?;
    let (name, address) = response.body.split_once(' ').context("a name and an address")?;
    Ok((name.to_owned(), address.to_owned()))
}

#[test]
fn sessions_behind_a_header_come_home() -> Result<()> {
    let (town, _servers, lbd) = begin("{ kind = \"learned\", cookie = \"sid\" }")?;
    let own = town.client.ip.to_string();
    let mut names = Vec::new();
    for _ in 0..6 {
        let output = curl(&town, &lbd, &["--haproxy-protocol"])?;
        let body = String::from_utf8_lossy(&output.stdout).into_owned();
        let (name, address) = body.split_once(' ').with_context(|| format!("{output:?}"))?;
        ensure!(address == own, "the server was told {address}, not {own}");
        names.push(name.to_owned());
    }
    ensure!(names.iter().all(|name| *name == names[0]), "{names:?}");
    ensure!(
        lbd.counter("affinity_hit")? == 5 && lbd.counter("proxy_missing")? == 0,
        "{}",
        lbd.ctl(&["stats"])?
    );
    // Without one: nginx wants it, and says so by closing.
    let output = curl(&town, &lbd, &[])?;
    ensure!(!String::from_utf8_lossy(&output.stdout).starts_with('b'), "{output:?}");
    ensure!(lbd.counter("proxy_missing")? == 1, "{}", lbd.ctl(&["stats"])?);
    Ok(())
}

#[test]
fn source_keeps_whom_the_header_names() -> Result<()> {
    let (town, _servers, lbd) = begin("{ kind = \"source\" }")?;
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..12 {
        let (name, address) = ask(&town, &v2([198, 51, 100, n]))?;
        ensure!(address == format!("198.51.100.{n}"), "{address}");
        let text = format!("PROXY TCP4 198.51.100.{n} {VIP} 5 80\r\n");
        ensure!(ask(&town, text.as_bytes())? == (name.clone(), address), "both versions lead to {name}");
        seen.insert(name);
    }
    ensure!(seen.len() > 1, "all clients of one proxy went to {seen:?}");
    ensure!(lbd.counter("hashed")? == 24 && lbd.counter("proxy_missing")? == 0, "{}", lbd.ctl(&["stats"])?);
    Ok(())
}

#[test]
fn http2_without_tls_is_counted() -> Result<()> {
    let (town, _servers, lbd) = begin("{ kind = \"learned\", cookie = \"sid\" }")?;
    let output = curl(&town, &lbd, &["--haproxy-protocol", "--http2"])?;
    ensure!(String::from_utf8_lossy(&output.stdout).starts_with('b'), "{output:?}");
    ensure!(lbd.counter("http2_upgrade")? == 1, "{}", lbd.ctl(&["stats"])?);
    // This nginx speaks HTTP/1 alone here, and says so.
    curl(&town, &lbd, &["--haproxy-protocol", "--http2-prior-knowledge"])?;
    ensure!(lbd.counter("http2_prior_knowledge")? == 1, "{}", lbd.ctl(&["stats"])?);
    Ok(())
}
