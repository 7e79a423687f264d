//! lbctl store, against stores opened here and against an lbd over its socket.

use super::super::{Cli, DONE, REFUSED, Said, UNREACHABLE, execute};
use crate::control::server::{Call, ControlSocket};
use crate::control::{Request, Response, ServiceView};
use crate::session::store::sled::SledStore;
use crate::session::{MemoryStore, Owner, Receipts, Record, SessionStore, State, unix_millis};
use crate::stores;
use clap::Parser;
use lb_common::token::SessionId;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::mpsc;

fn record(n: u32) -> Record {
    let mut state = State::default();
    state.set_as("n", &n).unwrap();
    let owner = Owner { slot: 0, epoch: 4 };
    let created = unix_millis();
    let expires = created + 3_600_000;
    Record {
        version: 1,
        revision: 1,
        service: 1,
        owner,
        created,
        expires,
        receipts: Receipts::default(),
        state,
    }
}

fn id(n: u32) -> SessionId {
    SessionId(std::array::from_fn(|at| if at < 4 { n.to_be_bytes()[at] } else { 7 }))
}

/// Gives a store a service `shop` with id 1, and sessions.
async fn fill(store: &dyn SessionStore, sessions: std::ops::Range<u32>) {
    store.service_id("shop").await.unwrap();
    let slot = store.slot("shop", "s1").await.unwrap();
    store.next_epoch(slot).await.unwrap();
    let records: Vec<_> = sessions.map(|n| (id(n), record(n))).collect();
    let saves = records.iter().map(|(id, record)| store.save(*id, record, None));
    for saved in futures::future::join_all(saves).await {
        saved.unwrap();
    }
}

struct Place(TempDir);

impl Place {
    async fn new(sessions: u32) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let store = SledStore::open(&place.path("store")).unwrap();
        fill(&store, 0..sessions).await;
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a command line; `{}` in it is the directory of this place.
    async fn lbctl(&self, line: &str) -> Said {
        let line = line.replace("{}", self.0.path().to_str().unwrap());
        let cli = Cli::try_parse_from(["lbctl"].into_iter().chain(line.split_whitespace()));
        let mut said = execute(&cli.unwrap_or_else(|error| panic!("{error}"))).await;
        for text in [&mut said.out, &mut said.err] {
            *text = text.replace(self.0.path().to_str().unwrap(), "{}");
        }
        said
    }

    async fn says(&self, line: &str, out: &str, err: &str, code: u8) {
        let said = self.lbctl(line).await;
        assert_eq!((said.out.as_str(), said.err.as_str(), said.code), (out, err, code), "{line}");
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// An lbd with the service `shop`, which does steps on a store as the real one does.
fn lbd(socket: &Path, store: Arc<dyn SessionStore>) {
    let socket = ControlSocket::bind(socket).unwrap();
    let (calls, mut asked) = mpsc::unbounded_channel::<Call>();
    tokio::spawn(async move { socket.serve(calls).await });
    tokio::spawn(async move {
        while let Some(call) = asked.recv().await {
            let response = match call.request {
                Request::Store { step } => stores::answer(&*store, None, step).await,
                Request::ServiceList {} => Response::Services { services: vec![shop()] },
                other => panic!("{other:?}"),
            };
            call.reply.send(response).unwrap();
        }
    });
}

fn shop() -> ServiceView {
    ServiceView {
        name: "shop".into(),
        id: 1,
        vip: String::new(),
        protocol: String::new(),
        affinity: String::new(),
        backends: 0,
        ready: 0,
        draining: 0,
        leaving: 0,
        promises: Vec::new(),
        mss: 0,
        maglev_size: 0,
    }
}

#[tokio::test]
async fn sessions_move_from_one_store_to_another() {
    let place = Place::new(1000).await;
    place
        .says(
            "store export {}/file --store {}/store",
            "exported 1,000 sessions from sled {}/store to {}/file\n",
            "",
            DONE,
        )
        .await;
    assert_eq!(place.files(), ["file", "store"]);
    let mode = std::fs::metadata(place.path("file")).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600, "sessions are private");
    place
        .says(
            "store import {}/file --store {}/other",
            "imported 1,000 sessions into sled {}/other\n",
            "",
            DONE,
        )
        .await;
    place.says("store check --store {}/other", "1,000 records in sled {}/other: all whole\n", "", DONE).await;
    place
        .says(
            "store import {}/file --store {}/other",
            "imported 0 sessions into sled {}/other; 1,000 there already and left as they are (--replace)\n",
            "",
            DONE,
        )
        .await;
    let [from, to] = ["store", "other"].map(|name| SledStore::open(&place.path(name)).unwrap());
    assert_eq!(to.given().await.unwrap(), from.given().await.unwrap());
    let found = to.load(id(999)).await.unwrap().unwrap();
    assert_eq!((found.state, found.owner), (record(999).state, Owner::UNSETTLED));
}

#[tokio::test]
async fn a_running_lbd_is_asked() {
    let place = Place::new(700).await;
    let store: Arc<dyn SessionStore> = Arc::new(MemoryStore::new());
    fill(&*store, 600..1600).await;
    lbd(&place.path("sock"), store.clone());
    place
        .says(
            "--socket {}/sock store export {}/file",
            "exported 1,000 sessions from memory to {}/file\n",
            "",
            DONE,
        )
        .await;
    place
        .says(
            "store import --replace {}/file --store {}/store",
            "imported 900 sessions into sled {}/store; 100 replaced\n",
            "",
            DONE,
        )
        .await;
    place
        .says(
            "store export {}/more --store {}/store",
            "exported 1,600 sessions from sled {}/store to {}/more\n",
            "",
            DONE,
        )
        .await;
    place
        .says(
            "--socket {}/sock store import {}/more",
            "imported 600 sessions into memory; 1,000 there already and left as they are (--replace)\n",
            "",
            DONE,
        )
        .await;
    assert_eq!(store.count().await.unwrap(), 1600);
    let said = place.lbctl("--socket {}/sock --json store check").await;
    assert_eq!(said.out, "{\n  \"records\": 1600,\n  \"damaged\": []\n}\n");
}

#[tokio::test]
async fn stores_that_are_not_there_or_in_use_are_told() {
    let place = Place::new(1).await;
    for verb in ["check", "export {}/file"] {
        let line = format!("store {verb} --store {{}}/stoer");
        place.says(&line, "", "lbctl: there is no session store in {}/stoer\n", REFUSED).await;
    }
    assert_eq!(place.files(), ["store"], "none was made by mistake");
    let held = SledStore::open(&place.path("store")).unwrap();
    let pid = std::process::id();
    let in_use = format!(
        "lbctl: store {{}}/store is in use by process {pid}, the lbd that runs\nleave --store and --config away to ask that lbd, \
         or stop it first\n"
    );
    place.says("store check --store {}/store", "", &in_use, REFUSED).await;
    drop(held);
    place
        .says(
            "--socket {}/nobody store check",
            "",
            "lbctl: no lbd answers at {}/nobody\nstart one with `lbd --config lb.toml`, or name the socket of another with \
             --socket\nwithout an lbd, name the store with --config lb.toml or --store DIRECTORY\n",
            UNREACHABLE,
        )
        .await;
    let error =
        Cli::try_parse_from(["lbctl", "store", "check", "--store", "a", "--config", "b"]).unwrap_err();
    assert!(error.to_string().contains("cannot be used with"), "{error}");
    place
        .says(
            "store check --config {}/none.toml",
            "",
            "lbctl: cannot read the configuration {}/none.toml: No such file or directory (os error 2); name another with \
             --config, or start from docs/lb.example.toml\n",
            REFUSED,
        )
        .await;
}

#[tokio::test]
async fn an_export_is_complete_or_not_there() {
    let place = Place::new(3).await;
    let said = place.lbctl("store export {}/no/dir/file --store {}/store").await;
    assert_eq!(said.code, REFUSED);
    assert!(said.err.starts_with("lbctl: cannot write {}/no/dir/file: No such file"), "{}", said.err);
    // Devices and pipes are written to, not replaced.
    place
        .says(
            "store export /dev/null --store {}/store",
            "exported 3 sessions from sled {}/store to /dev/null\n",
            "",
            DONE,
        )
        .await;
    place
        .says(
            "store export /dev/full --store {}/store",
            "",
            "lbctl: cannot write /dev/full: No space left on device (os error 28)\n",
            REFUSED,
        )
        .await;
    assert!(std::fs::metadata("/dev/full").unwrap().file_type().is_char_device());
    // An earlier one is replaced by a whole one.
    std::fs::write(place.path("file"), "earlier").unwrap();
    place.lbctl("store export {}/file --store {}/store").await;
    let text = std::fs::read_to_string(place.path("file")).unwrap();
    assert_eq!(text.lines().count(), 5);
    assert!(text.ends_with("\n{\"sessions\":3}\n"), "{text}");
    assert_eq!(place.files(), ["file", "store"]);
}

#[tokio::test]
async fn what_is_no_export_is_refused_before_anything_is_made() {
    let place = Place::new(3).await;
    for (text, reason) in [
        ("", "{}/file is empty"),
        ("\n\n", "{}/file is empty"),
        ("rubbish\n", "{}/file:1: this is no export of sessions: its first line should say what it is"),
    ] {
        std::fs::write(place.path("file"), text).unwrap();
        let err = format!("lbctl: {reason}\n");
        place.says("store import {}/file --store {}/new", "", &err, REFUSED).await;
    }
    let said = place.lbctl("store import {}/none --store {}/new").await;
    assert_eq!(said.err, "lbctl: cannot read {}/none: No such file or directory (os error 2)\n");
    assert_eq!(place.files(), ["file", "store"]);
}

#[tokio::test]
async fn a_damaged_file_is_imported_as_far_as_it_is_whole() {
    let place = Place::new(5).await;
    place.lbctl("store export {}/file --store {}/store").await;
    let text = std::fs::read_to_string(place.path("file")).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let write = |lines: &[&str]| std::fs::write(place.path("file"), lines.join("\n")).unwrap();
    write(&[&lines[..3], &["{\"id\":"][..], &lines[4..]].concat());
    place
        .says(
            "store import {}/file --store {}/one",
            "imported 4 sessions into sled {}/one\n",
            "{}/file:4: it is no session: EOF while parsing a value at line 1 column 6\n",
            REFUSED,
        )
        .await;
    write(&lines[..4]);
    place
        .says(
            "store import {}/file --store {}/two",
            "imported 3 sessions into sled {}/two\n",
            "lbctl: {}/file was cut off: its last line does not say how many sessions it has\n",
            REFUSED,
        )
        .await;
    write(&[&lines[..], &lines[1..2]].concat());
    place
        .says(
            "store import {}/file --store {}/three",
            "imported 5 sessions into sled {}/three\n",
            "{}/file:8: it stands behind the last line\n",
            REFUSED,
        )
        .await;
    let said = place.lbctl("--json store import {}/file --store {}/three").await;
    let done: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(
        (done["present"].as_u64(), done["complete"].as_bool(), said.code),
        (Some(5), Some(true), REFUSED)
    );
    assert_eq!(done["refused"][0][0], 8);
    let endless = "x".repeat(2 << 20);
    write(&[lines[0], &endless]);
    place
        .says(
            "store import {}/file --store {}/four",
            "",
            "lbctl: {}/file:2: it is longer than 1048576 bytes\n",
            REFUSED,
        )
        .await;
}

#[tokio::test]
async fn services_must_be_known_and_have_their_ids() {
    let place = Place::new(4).await;
    place.lbctl("store export {}/file --store {}/store").await;
    let text = std::fs::read_to_string(place.path("file")).unwrap();
    // An lbd that has `shop` under that very id, but the file calls it otherwise.
    let store: Arc<dyn SessionStore> = Arc::new(MemoryStore::new());
    fill(&*store, 0..0).await;
    lbd(&place.path("sock"), store.clone());
    std::fs::write(place.path("blog"), text.replace("shop", "blog")).unwrap();
    place
        .says(
            "--socket {}/sock store import {}/blog",
            "",
            "lbctl: no service of the file is configured here: it has blog, here is shop\n--service OLD=NEW imports the \
             sessions of OLD as those of NEW\n",
            REFUSED,
        )
        .await;
    place
        .says(
            "--socket {}/sock store import {}/blog --service bolg=shop",
            "",
            "lbctl: the file has no service `bolg`\nit has: blog\n",
            REFUSED,
        )
        .await;
    place
        .says(
            "--socket {}/sock store import {}/blog --service blog=shop",
            "imported 4 sessions into memory\n",
            "",
            DONE,
        )
        .await;
    // Two services, one of which is not known here.
    let two = text.replacen("\"services\":{\"shop\":1}", "\"services\":{\"blog\":9,\"shop\":1}", 1);
    let blog = |line: &str| line.replace("\"shop\",\"service_id\":1", "\"blog\",\"service_id\":9");
    let two: Vec<_> =
        two.lines().enumerate().map(|(n, l)| if n == 2 { blog(l) } else { l.to_owned() }).collect();
    std::fs::write(place.path("two"), two.join("\n")).unwrap();
    place
        .says(
            "--socket {}/sock store import {}/two --replace",
            "imported 0 sessions into memory; 3 replaced\n",
            "lbctl: 1 session was not imported: service `blog` is not known here; --service blog=NAME imports them as those of \
             NAME, --service blog= leaves them out\n",
            REFUSED,
        )
        .await;
    place
        .says(
            "--socket {}/sock store import {}/two --replace --service blog=",
            "imported 0 sessions into memory; 3 replaced\n",
            "",
            DONE,
        )
        .await;
    // The same name under another id: the tokens would be void.
    std::fs::write(place.path("three"), text.replace("\"shop\":1", "\"shop\":3")).unwrap();
    place
        .says(
            "--socket {}/sock store import {}/three",
            "",
            "lbctl: service shop cannot have id 3, which its tokens name: it has id 1 here\nthese sessions can only move to a \
             store that does not know the service yet: import them with --config or --store before an lbd starts on it\n",
            REFUSED,
        )
        .await;
    for wrong in ["blog", "=shop"] {
        let error = Cli::try_parse_from(["lbctl", "store", "import", "f", "--service", wrong]).unwrap_err();
        assert!(error.to_string().contains("write OLD=NEW, or OLD= to leave"), "{error}");
    }
}

#[tokio::test]
async fn a_configuration_names_store_and_services() {
    let place = Place::new(2).await;
    let config = |service: &str| {
        format!(
            "[lbd]\ninterfaces = [\"eth0\"]\nstore = {{ kind = \"sled\", path = \"store\" }}\n[[service]]\nname = \"{service}\"\n\
             vip = \"192.0.2.1:80\"\nbackend = [{{ name = \"s1\", managed = true }}]\n"
        )
    };
    std::fs::write(place.path("lb.toml"), config("shop")).unwrap();
    place.says("store check --config {}/lb.toml", "2 records in sled {}/store: all whole\n", "", DONE).await;
    place.lbctl("store export {}/file --config {}/lb.toml").await;
    std::fs::write(place.path("lb.toml"), config("blog")).unwrap();
    let said = place.lbctl("store import {}/file --config {}/lb.toml").await;
    assert!(said.err.contains("it has shop, here is blog"), "{}", said.err);
}
