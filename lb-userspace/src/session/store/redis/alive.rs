//! The pulse of a process: tells the others that it lives, and notices when they must have believed it dead.

use super::StoreError;
use super::core::Core;
use super::keys::slot;
use super::lease;
use super::message::Message;
use super::meta::Node;
use super::router::{Failure, Request, What};
use redis::{Value, cmd};
use std::sync::Arc;
use std::time::Duration;

/// How long the others believe that a process lives that has stopped telling, in leases: longer than it may believe so
/// itself.
const BELIEVED: u32 = 2;

/// Renewals within one lease.
const RENEWALS: u32 = 4;

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Renews for as long as it is polled.
pub(super) async fn live(core: Arc<Core>) {
    let mut registered = true;
    loop {
        tokio::time::sleep(core.options.lease / RENEWALS).await;
        let told = match registered {
            true => renew(&core).await,
            false => register(&core, core.options.lease).await.map(|()| true),
        };
        match told {
            Ok(still) => registered = still,
            Err(StoreError::Unavailable { reason, .. }) => core.lease.trouble(reason),
            Err(error) => core.lease.trouble(error.to_string()),
        }
    }
}

/// Takes a name that nobody ever had. Everything in memory was known to others under another one, so it is forgotten.
pub(super) async fn register(core: &Core, within: Duration) -> Result<(), StoreError> {
    // A new one with each try: a name that was once missing must never be seen again.
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| StoreError::Failed(format!("no random numbers for a node's name: {error}")))?;
    let node = Node::from_be_bytes(bytes);
    let began = lease::now();
    match tell(core, node, None, within).await? {
        Value::Okay => {
            core.rename(node);
            core.lease.known(began);
            Ok(())
        }
        other => Err(core.odd("a new name", &other)),
    }
}

/// False when the name was missing.
async fn renew(core: &Core) -> Result<bool, StoreError> {
    let began = lease::now();
    match tell(core, core.me(), Some("XX"), core.options.lease / 2).await? {
        Value::Okay => {
            core.lease.known(began);
            Ok(true)
        }
        Value::Nil => {
            core.lease.unknown();
            tracing::warn!(store = core.place, "the others believed this process dead: copies are forgotten");
            Ok(false)
        }
        other => Err(core.odd("a renewal", &other)),
    }
}

async fn tell(core: &Core, node: Node, when: Option<&str>, within: Duration) -> Result<Value, StoreError> {
    let mut set = cmd("SET");
    let key = core.keys.node(node);
    set.arg(&key).arg(1).arg("PX").arg((core.options.lease * BELIEVED).as_millis() as u64).arg(when);
    let request = Request { slot: slot(&key), need: core.shared(), ask: What::Plain(set) };
    let told = core.router.ask_within(request, within).await;
    let told =
        told.map_err(|Failure(why)| core.unavailable(Failure(format!("cannot renew the lease: {why}"))))?;
    Ok(told.value)
}

/// Ends the lease for good and says so, so that nobody has to find out by waiting.
pub(super) async fn goodbye(core: &Core) {
    core.lease.unknown();
    core.lease.deaf();
    core.void_all();
    let node = core.me();
    let bye = Message::Bye(node);
    let bye = core.send(&bye, &[], core.shared());
    // Who misses it finds the name missing soon.
    let _ = tokio::time::timeout(GOODBYE, bye).await;
    let mut del = cmd("DEL");
    let key = core.keys.node(node);
    del.arg(&key);
    let request = Request { slot: slot(&key), need: super::link::Need::Nothing, ask: What::Plain(del) };
    let _ = core.router.ask_within(request, GOODBYE / 2).await;
}
