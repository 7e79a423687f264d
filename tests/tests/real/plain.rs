//! Servers that speak first, and clients that know nothing of HTTP.

use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use tests::balancer::dial;
use tests::real::visit::curl;
use tests::real::{App, Scene};
use tests::topology::NIC;

/// ssh from one of the client's addresses, as somebody whom the server does not let in: what it says. The host key was
/// accepted when it says "Permission denied".
fn ssh(scene: &Scene, from: &str, known_hosts: &Path, new: &str) -> Result<String> {
    let output = scene
        .town
        .client
        .netns
        .command("ssh")
        .args(["-F", "none", "-b", from, "-p", &dial().port().to_string()])
        .args(["-o", "PreferredAuthentications=none", "-o", "ConnectTimeout=30"])
        .args(["-o", &format!("StrictHostKeyChecking={new}"), "-o", "GlobalKnownHostsFile=none", "-o"])
        .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
        .arg(dial().ip().to_string())
        .arg("true")
        .output()
        .context("running ssh; `cargo xtask setup` installs it")?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// sshd's clients remember its host key, and each of ours has a key of its own.
#[test]
fn ssh_clients_meet_the_host_key_that_they_know() -> Result<()> {
    const CLIENTS: u8 = 16;
    Scene::run(App::Sshd, |scene| {
        let addresses: Vec<String> = (0..CLIENTS).map(|i| format!("10.0.1.{}", 100 + i)).collect();
        for address in &addresses {
            scene.town.client.netns.ip(&[&format!("addr add {address}/24 dev {NIC}")])?;
        }
        let dir = tempfile::tempdir()?;
        let scene = &*scene;
        let visit = |address: &str, new: &str| {
            let known_hosts = dir.path().join(address);
            let said = ssh(scene, address, &known_hosts, new)?;
            ensure!(said.contains("Permission denied"), "from {address}: {said}");
            Ok(known_hosts)
        };
        std::thread::scope(|scope| {
            let visits: Vec<_> = addresses
                .iter()
                .map(|address| {
                    scope.spawn(|| {
                        visit(address, "accept-new")?;
                        // Whoever now meets another key is told that somebody may be eavesdropping.
                        visit(address, "yes")
                    })
                })
                .collect();
            visits.into_iter().try_for_each(|visit| visit.join().expect("does not panic").map(drop))
        })?;
        let mut known = BTreeSet::new();
        for address in &addresses {
            let line = fs::read_to_string(dir.path().join(address))?;
            known.insert(line.split(' ').nth(2).context("a host key has three words")?.trim().to_owned());
        }
        let mut keys = BTreeSet::new();
        for instance in &scene.instances {
            let line = fs::read_to_string(instance.dir().join("key.pub"))?;
            keys.insert(line.split(' ').nth(1).context("a public key has two words")?.to_owned());
        }
        ensure!(keys.len() == 3 && known.is_subset(&keys), "{known:?} are not of {keys:?}");
        ensure!(known.len() > 1, "{CLIENTS} clients are all at one server");
        Ok(())
    })
}

/// Whose home is nowhere may be served by anyone.
#[test]
fn mail_arrives_whole_whoever_takes_it() -> Result<()> {
    const MAILS: usize = 30;
    Scene::run(App::Smtp, |scene| {
        let dir = tempfile::tempdir()?;
        let body = "The quick brown fox jumps over the lazy dog.\r\n".repeat(4000);
        let mail =
            |i: usize| format!("From: a@example.org\r\nTo: b@example.org\r\nSubject: mail {i}\r\n\r\n{body}");
        let scene = &*scene;
        std::thread::scope(|scope| {
            let sent: Vec<_> = (0..MAILS)
                .map(|i| {
                    let file = dir.path().join(i.to_string());
                    let mail = &mail;
                    scope.spawn(move || -> Result<()> {
                        fs::write(&file, mail(i))?;
                        let file = file.to_str().context("a temporary file has a plain name")?;
                        let (from, to) = (["--mail-from", "a@example.org"], ["--mail-rcpt", "b@example.org"]);
                        let url = format!("smtp://{}", dial());
                        curl(&scene.town, &[&url, from[0], from[1], to[0], to[1], "--upload-file", file])?;
                        Ok(())
                    })
                })
                .collect();
            sent.into_iter().try_for_each(|sent| sent.join().expect("does not panic"))
        })?;
        let mut arrived = BTreeMap::<String, usize>::new();
        for instance in &scene.instances {
            for file in fs::read_dir(instance.dir().join("mail/new"))? {
                let text = fs::read_to_string(file?.path())?.replace("\r\n", "\n");
                let (head, rest) = text.split_once("\n\n").context("a mail has a head")?;
                ensure!(rest == body.replace("\r\n", "\n"), "a mail has changed on its way");
                let subject = head.lines().find(|line| line.starts_with("Subject: "));
                *arrived.entry(subject.context("a mail has a subject")?.to_owned()).or_default() += 1;
            }
        }
        ensure!(arrived.len() == MAILS && arrived.values().all(|n| *n == 1), "not each once: {arrived:?}");
        let idle =
            scene.instances.iter().filter(|instance| !instance.dir().join("mail/new").exists()).count();
        ensure!(idle == 0, "{idle} servers got no mail at all");
        Ok(())
    })
}
