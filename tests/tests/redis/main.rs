//! Session stores on real redis-servers.

mod cluster;
mod fixture;
mod shared;
mod store;
mod tls;

use lb_common::token::SessionId;
use lb_userspace::session::{Owner, Receipts, Record, State};

/// The server whose sessions these are.
const ME: Owner = Owner { slot: 1, epoch: 1 };

fn id(n: u32) -> SessionId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    SessionId(id)
}

/// A session with one value in it, under the key `k`.
fn record(revision: u64, value: &str) -> Record {
    let mut state = State::default();
    state.set_as("k", &value).unwrap();
    Record {
        version: revision,
        revision,
        service: 1,
        owner: ME,
        created: 0,
        expires: u64::MAX,
        receipts: Receipts::default(),
        state,
    }
}
