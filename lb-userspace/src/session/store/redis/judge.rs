//! What a server says about itself, and whether it keeps what it acknowledges. Every server is judged: primaries, and the
//! replicas that may be elected in their place.

use super::link::text;
use super::router::field;
use redis::{Cmd, Value, cmd};

/// The oldest that has all that is used here.
const OLDEST: (u32, u32) = (6, 2);

/// The oldest with WAITAOF.
const WAITAOF: (u32, u32) = (7, 2);

/// What the store was told to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Replicas that a change must be on.
    pub(super) replicas: u32,
    /// Others may be elected by themselves.
    pub(super) cluster: bool,
    /// What would be a reason to refuse is a note.
    pub(super) volatile: bool,
}

/// What is asked of a server to judge it.
pub(super) fn questions() -> [Cmd; 3] {
    let mut config = cmd("CONFIG");
    config.arg("GET").arg("appendfsync");
    [cmd("INFO"), config, cmd("TIME")]
}

/// A server as it was when it was last asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Judged {
    /// Why it will not do.
    pub(super) unfit: Option<String>,
    /// What else is to be known about it.
    pub(super) notes: Vec<String>,
    pub(super) primary: bool,
    pub(super) has_waitaof: bool,
    /// `appendfsync`; `None` where it has no append-only file or does not tell.
    pub(super) fsync: Option<String>,
    /// Its clock, milliseconds since 1970.
    pub(super) time: Option<u64>,
    /// Where its replicas are, as far as it tells.
    pub(super) replicas: Vec<(String, u16)>,
}

impl Judged {
    /// From the answers to [`questions`].
    ///
    /// # Errors
    /// The answers are none to these questions.
    pub(super) fn of(answers: &[Value], rules: Rules) -> Result<Self, String> {
        let [info, config, time] = answers else { return Err("gives no answers".into()) };
        if let Value::ServerError(error) = info {
            return Err(format!("does not tell what it is like: {error}"));
        }
        let fsync = match config {
            Value::Array(pair) => pair.get(1).map(text),
            _ => None,
        };
        Ok(Self { time: time_of(time), ..judge(&text(info), fsync, rules) })
    }
}

/// The answer to TIME, in milliseconds since 1970.
pub(super) fn time_of(answer: &Value) -> Option<u64> {
    let Value::Array(parts) = answer else { return None };
    let [seconds, micros] = parts.as_slice() else { return None };
    let (seconds, micros): (u64, u64) = (text(seconds).parse().ok()?, text(micros).parse().ok()?);
    seconds.checked_mul(1000)?.checked_add(micros / 1000)
}

fn judge(info: &str, fsync: Option<String>, rules: Rules) -> Judged {
    let get = |name: &str| field(info, name).unwrap_or_default();
    let version = get("redis_version");
    let known = version_of(version);
    let aof = get("aof_enabled") == "1";
    let primary = get("role") != "slave";
    let connected: u32 = get("connected_slaves").parse().unwrap_or(0);
    let mut judged = Judged {
        unfit: None,
        notes: Vec::new(),
        primary,
        has_waitaof: aof && known.is_some_and(|version| version >= WAITAOF),
        fsync: fsync.filter(|_| aof),
        time: None,
        replicas: info.lines().filter_map(replica).collect(),
    };
    let (major, minor) = OLDEST;
    let policy = get("maxmemory_policy");
    if known.is_none_or(|version| version < OLDEST) {
        judged.unfit =
            Some(format!("version {version:?} is too old: {major}.{minor} is the oldest that will do"));
        return judged;
    }
    if get("maxmemory") != "0" && policy != "noeviction" {
        judged.unfit = Some(format!(
            "maxmemory-policy {policy} throws sessions away when memory is short: set it to noeviction"
        ));
        return judged;
    }
    if !aof {
        match rules.volatile {
            true => judged.notes.push(
                "a server without an append-only file forgets acknowledged writes when it restarts".into(),
            ),
            false => {
                judged.unfit = Some(
                    "it has no append-only file, so what it acknowledged is gone when it restarts: set appendonly to \
                     yes"
                        .into(),
                );
            }
        }
    }
    if primary && connected > rules.replicas {
        if rules.replicas == 0 && rules.cluster && !rules.volatile {
            judged.unfit.get_or_insert(
                "its replicas may take over without having what was acknowledged: set the store's option replicas to 1 \
                 or more"
                    .into(),
            );
        } else {
            judged.notes.push(format!(
                "a primary has {connected} replicas and {} of them are awaited: a failover may elect one without the last \
                 acknowledged changes; set the store's option replicas to {connected}",
                rules.replicas
            ));
        }
    }
    judged
}

/// A line `slave0:ip=10.0.0.6,port=6379,state=online,...`.
fn replica(line: &str) -> Option<(String, u16)> {
    let (name, fields) = line.split_once(':')?;
    name.strip_prefix("slave")?.parse::<u32>().ok()?;
    let of = |key: &str| fields.split(',').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
    Some((of("ip")?.to_owned(), of("port")?.trim().parse().ok()?))
}

fn version_of(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// What an acknowledged change has been through, in words.
pub(super) fn promise(replicas: u32, disk: bool, fsync: Option<&str>) -> String {
    let of_replicas = match replicas {
        0 => String::new(),
        1 => " and of 1 replica".into(),
        n => format!(" and of {n} replicas"),
    };
    match (disk, fsync) {
        (true, _) => format!("acknowledged is what is on the disk of the primary{of_replicas} (WAITAOF)"),
        (false, Some("always")) if replicas == 0 => {
            "acknowledged is what is on the disk of the server (appendfsync always)".into()
        }
        (false, Some("always")) => format!(
            "acknowledged is what is on the disk of the primary and in the memory{of_replicas} (appendfsync always, WAIT)"
        )
        .replace("memory and of", "memory of"),
        (false, Some(fsync)) if replicas == 0 => format!(
            "acknowledged is what the server has in memory; appendfsync is {fsync}, so a crash of its machine takes what was \
             acknowledged in the last seconds: `always` keeps it"
        ),
        (false, Some(fsync)) => format!(
            "acknowledged is what is in the memory of the primary{of_replicas} (WAIT); appendfsync is {fsync}, so when all of \
             them lose power at once, the last seconds are lost"
        ),
        (false, None) => format!("acknowledged is what is in the memory of the primary{of_replicas}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "redis_version:7.0.15\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:1\r\nrole:master\r\n\
                        connected_slaves:1\r\nslave0:ip=::1,port=6380,state=online,offset=1,lag=0\r\n";

    fn judged(info: &str, replicas: u32, cluster: bool, volatile: bool) -> Judged {
        judge(info, Some("everysec".into()), Rules { replicas, cluster, volatile })
    }

    #[test]
    fn a_server_that_would_forget_is_refused_whatever_its_role() {
        for (from, to, why) in [
            ("7.0.15", "6.0.9", "too old"),
            ("7.0.15", "", "too old"),
            ("maxmemory:0", "maxmemory:1000", "throws sessions away"),
            ("aof_enabled:1", "aof_enabled:0", "set appendonly to yes"),
        ] {
            for role in ["role:master", "role:slave"] {
                let info = GOOD.replace(from, to).replace("role:master", role);
                let unfit = judged(&info, 1, true, false).unfit.unwrap();
                assert!(unfit.contains(why), "{unfit}");
            }
        }
        assert!(judged(GOOD, 0, true, false).unfit.unwrap().contains("option replicas"));
    }

    #[test]
    fn what_is_merely_risky_is_told() {
        let good = judged(GOOD, 1, true, false);
        assert_eq!((good.unfit, good.notes), (None, Vec::new()));
        assert_eq!(good.replicas, [("::1".to_owned(), 6380)]);
        let more = GOOD.replace("connected_slaves:1", "connected_slaves:2");
        let told = judged(&more, 1, true, false);
        assert!(told.unfit.is_none() && told.notes[0].contains("may elect one without"), "{told:?}");
        let alone = judged(GOOD, 0, false, false);
        assert!(alone.unfit.is_none() && alone.notes.len() == 1, "{alone:?}");
        assert_eq!(judged(&GOOD.replace("aof_enabled:1", "aof_enabled:0"), 0, true, true).notes.len(), 2);
    }

    #[test]
    fn what_acknowledged_means_depends_on_servers_and_options() {
        for (replicas, disk, fsync, told) in [
            (0, true, Some("everysec"), "on the disk of the primary (WAITAOF)"),
            (2, true, Some("always"), "on the disk of the primary and of 2 replicas (WAITAOF)"),
            (0, false, Some("always"), "on the disk of the server"),
            (1, false, Some("always"), "on the disk of the primary and in the memory of 1 replica"),
            (0, false, Some("everysec"), "takes what was acknowledged in the last seconds"),
            (1, false, Some("everysec"), "in the memory of the primary and of 1 replica (WAIT)"),
            (0, false, None, "in the memory of the primary"),
        ] {
            let promise = promise(replicas, disk, fsync);
            assert!(promise.contains(told), "{promise}");
        }
    }

    #[test]
    fn waitaof_needs_a_version_and_a_file() {
        let has = |version: &str, aof: &str| {
            judged(&GOOD.replace("7.0.15", version).replace("aof_enabled:1", aof), 1, true, true).has_waitaof
        };
        assert!(
            !has("7.0.15", "aof_enabled:1") && has("7.2.0", "aof_enabled:1") && has("8.0.1", "aof_enabled:1")
        );
        assert!(!has("7.2.0", "aof_enabled:0"));
    }

    #[test]
    fn the_answer_to_time_is_read() {
        let bulk = |text: &str| Value::BulkString(text.into());
        assert_eq!(time_of(&Value::Array(vec![bulk("12"), bulk("345678")])), Some(12_345));
        assert_eq!(time_of(&Value::Array(vec![bulk("12")])), None);
        assert_eq!(time_of(&Value::Nil), None);
    }
}
