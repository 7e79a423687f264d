//! The ear of a process: reads what the others tell, obeys it, and only then renews the lease.

use super::core::Core;
use super::dialer::Connection;
use super::keys::slot;
use super::lease;
use super::link::{Need, text};
use super::message::Message;
use super::meta::Node;
use super::router::{Pauses, field};
use redis::{Pipeline, Value, cmd};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::time::Instant;

/// Messages read at once.
const BATCH: usize = 1000;

/// How far this process has read.
struct Place {
    /// The history that the server's data has: another one after a restart, a failover, a restored copy.
    lineage: String,
    /// Number of the last message.
    last: u64,
}

/// Listens for as long as it is polled.
pub(super) async fn listen(core: Arc<Core>) {
    let mut place = None;
    let mut pauses = Pauses::new();
    loop {
        let began = Instant::now();
        let Err(why) = hear(&core, &mut place).await;
        core.lease.trouble(why);
        core.router.doubt();
        if began.elapsed() > core.options.lease {
            pauses = Pauses::new();
        }
        tokio::time::sleep(pauses.next()).await;
    }
}

/// Reads on one connection until something is wrong with it.
async fn hear(core: &Arc<Core>, place: &mut Option<Place>) -> Result<Infallible, String> {
    let addr = core.router.primary(slot(&core.keys.mail)).ok_or("no redis node serves the messages")?;
    let mut connection = core.router.dialer().dial(&addr).await?;
    loop {
        match place {
            None => *place = Some(arrive(core, &mut connection).await?),
            Some(here) => {
                if !read(core, &mut connection, here).await? {
                    *place = None;
                }
            }
        }
    }
}

/// Begins at the end of the messages there are. Whatever they were about: nothing is in memory that is older.
async fn arrive(core: &Arc<Core>, connection: &mut Connection) -> Result<Place, String> {
    core.lease.deaf();
    let mut info = cmd("INFO");
    info.arg("replication");
    let [lineage, last] = exchange(core, connection, [info, get_last(core)]).await?;
    let (lineage, last) = (lineage_of(&lineage)?, last_of(core, &last)?);
    // Only now: what was read from the database before the place was known may have changed unheard.
    core.void_all();
    let catch_up = core.clone();
    tokio::spawn(async move { catch_up.compare_epochs().await });
    Ok(Place { lineage, last })
}

/// Waits for messages and obeys them. False when this is another history than that of the messages read so far.
async fn read(core: &Arc<Core>, connection: &mut Connection, place: &mut Place) -> Result<bool, String> {
    let began = lease::now();
    let block = (core.options.lease / 8).as_millis().max(1) as u64;
    let mut xread = cmd("XREAD");
    xread.arg("COUNT").arg(BATCH).arg("BLOCK").arg(block);
    xread.arg("STREAMS").arg(&core.keys.mail).arg(format!("{}-0", place.last));
    let mut info = cmd("INFO");
    info.arg("replication");
    // The history is looked at after the messages: they are of this one or of one that is noticed now. Where somebody has
    // deleted the messages, they are numbered from the beginning again.
    let [messages, last, lineage] = exchange(core, connection, [xread, get_last(core), info]).await?;
    if lineage_of(&lineage)? != place.lineage || last_of(core, &last)? < place.last {
        core.lease.deaf();
        tracing::info!(
            store = core.place,
            "another server or another history: copies in memory are forgotten"
        );
        return Ok(false);
    }
    let mut receipts = Vec::new();
    let messages = entries(&messages)?;
    // As many as were asked for: there may be more that was there when this began.
    let all = messages.len() < BATCH;
    for (number, body) in messages {
        if place.last.checked_add(1) != Some(number) {
            tracing::warn!(store = core.place, place.last, number, "missed messages: copies are forgotten");
            core.void_all();
            let catch_up = core.clone();
            tokio::spawn(async move { catch_up.compare_epochs().await });
        }
        place.last = number;
        match Message::decode(&body) {
            Some(message) => obey(core, message, &mut receipts),
            // Of a later version, which must not rely on this one's obedience.
            None => tracing::warn!(store = core.place, number, "a message that cannot be read"),
        }
    }
    if all {
        core.lease.heard(began);
    }
    if !receipts.is_empty() {
        let core = core.clone();
        tokio::spawn(async move {
            // Who does not hear of it waits until the lease is over.
            if let Err(error) = core.send(&Message::Voided(receipts), &[], Need::Nothing).await {
                tracing::warn!(%error, "cannot tell that copies were forgotten");
            }
        });
    }
    Ok(true)
}

fn obey(core: &Core, message: Message, receipts: &mut Vec<(super::message::Receipt, Node)>) {
    match message {
        Message::Void { id, receipt, at } => {
            let mine: Vec<Node> = at.into_iter().filter(|node| core.is_me(*node)).collect();
            if !mine.is_empty() {
                core.void(id);
                receipts.extend(mine.into_iter().map(|node| (receipt, node)));
            }
        }
        Message::Voided(receipts) => {
            let mut tickets = core.tickets.lock();
            for (receipt, node) in receipts {
                if let Some(ticket) = tickets.get_mut(&receipt) {
                    ticket.waiting.remove(&node);
                    ticket.answered.notify_one();
                }
            }
        }
        Message::Epoch { by, slot, epoch } => {
            if !core.is_me(by) {
                core.heard_epoch(slot, epoch);
            }
        }
        Message::Bye(node) => {
            core.buried(node, Instant::now());
        }
    }
}

fn get_last(core: &Core) -> redis::Cmd {
    let mut get = cmd("GET");
    get.arg(&core.keys.last);
    get
}

/// The number of the last message that was sent; 0 before the first.
fn last_of(core: &Core, answer: &Value) -> Result<u64, String> {
    match answer {
        Value::Nil => Ok(0),
        last => text(last).parse().map_err(|_| format!("{} is {last:?}", core.keys.last)),
    }
}

/// The history of a primary's data.
fn lineage_of(info: &Value) -> Result<String, String> {
    let info = text(info);
    match (field(&info, "role"), field(&info, "master_replid")) {
        (Some("master"), Some(lineage)) => Ok(lineage.to_owned()),
        (Some(role), _) => Err(format!("the redis node of the messages is a {role} now")),
        _ => Err("the redis node of the messages does not tell its role".into()),
    }
}

/// Numbers and bodies of messages.
fn entries(read: &Value) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let streams = match read {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(streams) => streams,
        other => return Err(format!("XREAD answered {other:?}")),
    };
    let entry = |entry: &Value| -> Option<(u64, Vec<u8>)> {
        let Value::Array(entry) = entry else { return None };
        let [id, Value::Array(fields)] = entry.as_slice() else { return None };
        let number = text(id).split_once('-')?.0.parse().ok()?;
        match fields.as_slice() {
            [_, Value::BulkString(body)] => Some((number, body.clone())),
            _ => None,
        }
    };
    let mut found = Vec::new();
    for stream in streams {
        let Value::Array(stream) = stream else { return Err(format!("XREAD answered {stream:?}")) };
        let [_, Value::Array(entries)] = stream.as_slice() else {
            return Err(format!("XREAD answered {stream:?}"));
        };
        for value in entries {
            found.push(entry(value).ok_or_else(|| format!("a message is {value:?}"))?);
        }
    }
    Ok(found)
}

async fn exchange<const N: usize>(
    core: &Core,
    connection: &mut Connection,
    cmds: [redis::Cmd; N],
) -> Result<[Value; N], String> {
    let mut pipeline = Pipeline::new();
    for cmd in cmds {
        pipeline.add_command(cmd);
    }
    let asked = connection.ask(&pipeline);
    // Reading blocks for a fraction of the lease; after all of it no answer is of any use.
    let timeout = core.options.lease + core.router.dialer().connect;
    let values = match tokio::time::timeout(timeout, asked).await {
        Ok(values) => values.map_err(|error| format!("the connection for messages was lost: {error}"))?,
        Err(_) => return Err("the redis node of the messages does not answer".into()),
    };
    if let Some(Value::ServerError(error)) =
        values.iter().find(|value| matches!(value, Value::ServerError(_)))
    {
        return Err(format!("the redis node of the messages answered: {error}"));
    }
    values.try_into().map_err(|values| format!("{values:?} in answer to {N} commands"))
}
