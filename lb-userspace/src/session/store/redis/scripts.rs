//! What the servers do in one atomic step each. Offsets are those of meta.rs, counted from 1 as Lua does.
//!
//! Whatever is to be acknowledged writes something, if need be what is there already: newer servers let WAIT wait only for
//! what its own connection wrote.

use redis::{Cmd, Script};
use std::sync::LazyLock;

/// A script that is sent by its hash, and as a whole to a server that does not know it yet.
pub(super) struct Lua {
    hash: String,
    text: &'static str,
}

impl Lua {
    fn new(text: &'static str) -> Self {
        Self { hash: Script::new(text).get_hash().to_owned(), text }
    }

    /// `whole`: for a server that answered NOSCRIPT.
    pub(super) fn call(&self, whole: bool, keys: &[String], args: &[Vec<u8>]) -> Cmd {
        let mut cmd = Cmd::new();
        match whole {
            true => cmd.arg("EVAL").arg(self.text),
            false => cmd.arg("EVALSHA").arg(&self.hash),
        };
        cmd.arg(keys.len()).arg(keys);
        for arg in args {
            cmd.arg(arg.as_slice());
        }
        cmd
    }
}

macro_rules! lua {
    ($(#[$doc:meta])* $name:ident = $text:expr;) => {
        $(#[$doc])*
        pub(super) static $name: LazyLock<Lua> = LazyLock::new(|| Lua::new($text));
    };
}

lua! {
    /// Reads a session and, by writing something that changes nothing, makes the WAIT that follows cover what was read.
    ///
    /// KEYS: session. Answer: meta and record, each nil when it is not there.
    LOAD = "
local v = redis.call('HMGET', KEYS[1], 'm', 'r')
if v[1] then redis.call('HSET', KEYS[1], 't', '') end
return v";
}

lua! {
    /// Saves a session or hands it over.
    ///
    /// KEYS: session. ARGV: expected revision (8 bytes; empty: no such session), nonce, stamp, node, how long the key stays (ms),
    /// record (empty: stays), '1' to compare nothing. Answer: 0 for a conflict, else 1, former owner, holders.
    CHANGE = "
local m = redis.call('HGET', KEYS[1], 'm')
if m and string.sub(m, 1, 16) == ARGV[2] then
  redis.call('HSET', KEYS[1], 't', '')
  return {1, string.sub(m, 43, 48), string.sub(m, 49)}
end
local there = m and redis.call('HEXISTS', KEYS[1], 'r') == 1
if ARGV[7] ~= '1' then
  if ARGV[1] == '' then
    if m then return {0} end
  elseif not there or string.sub(m, 17, 24) ~= ARGV[1] then
    return {0}
  end
end
if ARGV[6] == '' and not there then return {0} end
local former, holders = string.rep('\\0', 6), ARGV[4]
if m then
  former = string.sub(m, 25, 30)
  for i = 49, #m, 8 do
    local node = string.sub(m, i, i + 7)
    if node ~= ARGV[4] then holders = holders .. node end
  end
end
local meta = ARGV[2] .. ARGV[3] .. former .. holders
if ARGV[6] == '' then
  redis.call('HSET', KEYS[1], 'm', meta)
else
  redis.call('HSET', KEYS[1], 'm', meta, 'r', ARGV[6])
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {1, former, holders}";
}

lua! {
    /// Ends a session. What is left says who may still have a copy, for as long as somebody may.
    ///
    /// KEYS: session. ARGV: expected revision (8 bytes), nonce, stamp, node, how long a settled rest stays (ms), '1' to
    /// compare nothing. Answer as of CHANGE.
    DELETE = "
local m = redis.call('HGET', KEYS[1], 'm')
if not m then return {0} end
if string.sub(m, 1, 16) == ARGV[2] then
  redis.call('HSET', KEYS[1], 't', '')
  return {1, string.sub(m, 43, 48), string.sub(m, 49)}
end
if redis.call('HEXISTS', KEYS[1], 'r') == 0 then return {0} end
if ARGV[6] ~= '1' and string.sub(m, 17, 24) ~= ARGV[1] then return {0} end
local former, holders, alone = string.sub(m, 25, 30), ARGV[4], true
for i = 49, #m, 8 do
  local node = string.sub(m, i, i + 7)
  if node ~= ARGV[4] then
    holders = holders .. node
    alone = false
  end
end
redis.call('HSET', KEYS[1], 'm', ARGV[2] .. ARGV[3] .. former .. holders)
redis.call('HDEL', KEYS[1], 'r')
if alone then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
return {1, former, holders}";
}

lua! {
    /// Sets the holders of a session, once all others are known to have none, if nothing was changed since.
    ///
    /// KEYS: session. ARGV: nonce of the change, holders, how long what is left of an ended session stays (ms).
    SETTLE = "
local m = redis.call('HGET', KEYS[1], 'm')
if not m or string.sub(m, 1, 16) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'm', string.sub(m, 1, 48) .. ARGV[2])
if redis.call('HEXISTS', KEYS[1], 'r') == 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1";
}

lua! {
    /// Sends a message to all processes, and tells which of some are alive. Messages are numbered without gaps, so whoever
    /// missed one notices.
    ///
    /// KEYS: stream, last number, liveness keys. ARGV: message, how many to keep. Answer: for each liveness key 0 or 1.
    SEND = "
local n = redis.call('INCR', KEYS[2])
if n == 1 then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if last[1] then
    n = tonumber(string.match(last[1][1], '^%d+')) + 1
    redis.call('SET', KEYS[2], string.format('%.0f', n))
  end
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], string.format('%.0f-0', n), 'm', ARGV[1])
local alive = {}
for i = 3, #KEYS do alive[i - 2] = redis.call('EXISTS', KEYS[i]) end
return alive";
}

lua! {
    /// Tells the store's format, and sets it where there is no store yet.
    ///
    /// KEYS: names. ARGV: format of a new store. Answer: format.
    FORMAT = "
local found = redis.call('HGET', KEYS[1], 'format')
if found then return found end
if redis.call('EXISTS', KEYS[1]) == 1 then return 'none' end
redis.call('HSET', KEYS[1], 'format', ARGV[1])
return ARGV[1]";
}

lua! {
    /// Gives out the next epoch of a slot.
    ///
    /// KEYS: names. ARGV: field, largest, '1' to keep what there is. Answer: epoch; 0 when there is none left, -1 for what
    /// is no number.
    EPOCH = "
local last = redis.call('HGET', KEYS[1], ARGV[1])
local n = 0
if last then
  n = tonumber(last)
  if not n then return -1 end
end
if n > 0 and ARGV[3] == '1' then return n end
if n >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', n + 1))
redis.call('HINCRBY', KEYS[1], 'version', 1)
return n + 1";
}

lua! {
    /// Reads all names, and makes the WAIT that follows cover what was read.
    ///
    /// KEYS: names. Answer: fields and values in turn.
    NAMES = "
redis.call('HSET', KEYS[1], 'read', '')
return redis.call('HGETALL', KEYS[1])";
}

lua! {
    /// Changes names, if nobody else has since they were read.
    ///
    /// KEYS: names. ARGV: version that was read (empty: none), nonce, number of fields to set, fields and values in turn,
    /// fields to remove. Answer: 0 for a conflict, else 1.
    RENAME = "
if redis.call('HGET', KEYS[1], 'nonce') == ARGV[2] then
  redis.call('HSET', KEYS[1], 'read', '')
  return 1
end
if (redis.call('HGET', KEYS[1], 'version') or '') ~= ARGV[1] then return 0 end
local sets = tonumber(ARGV[3])
for i = 4, 2 + 2 * sets, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = 4 + 2 * sets, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
redis.call('HSET', KEYS[1], 'nonce', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1";
}
