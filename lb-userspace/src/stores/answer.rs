//! One step of looking through a whole store, or of filling it. lbctl asks for step after step, so no step takes long,
//! and nothing is kept in between.

use crate::control::{Refused, Response, StoreRequest, StoreView};
use crate::session::store::archive;
use crate::session::{Copies, SessionStore, StoreError, unix_millis};
use std::time::Duration;

/// How long lbctl is kept waiting for the number of sessions.
const COUNT_PATIENCE: Duration = Duration::from_secs(1);

/// How many sessions there are, if the store tells in time.
pub(crate) async fn count(store: &dyn SessionStore) -> Option<u64> {
    let count = tokio::time::timeout(COUNT_PATIENCE, store.count()).await;
    count.ok().and_then(Result::ok)
}

/// Does what lbctl asks. `copies` are what this process holds in memory.
pub async fn answer(
    store: &dyn SessionStore,
    copies: Option<&dyn Copies>,
    request: StoreRequest,
) -> Response {
    let now = || store.now().unwrap_or_else(unix_millis);
    let answered = match request {
        StoreRequest::Look {} => look(store).await.map(|view| Response::Store(Box::new(view))),
        StoreRequest::Check { from } => archive::check(store, from).await.map(Response::StoreChecked),
        StoreRequest::Export { from } => {
            archive::export(store, from, now()).await.map(Response::StoreExported)
        }
        StoreRequest::Adopt { given } => {
            store.adopt(given).await.map(|()| Response::Done { message: String::new() })
        }
        StoreRequest::Import { lines, how } => {
            Ok(Response::StoreImported(archive::import(store, copies, lines, &how, now()).await))
        }
    };
    answered.unwrap_or_else(|error| Response::Refused(refused(&error)))
}

async fn look(store: &dyn SessionStore) -> Result<StoreView, StoreError> {
    let given = store.given().await?;
    Ok(StoreView { state: store.state(), sessions: count(store).await, given })
}

fn refused(error: &StoreError) -> Refused {
    let help = match error {
        StoreError::ServiceId { .. } => {
            "these sessions can only move to a store that does not know the service yet: import them with --config or \
             --store before an lbd starts on it"
        }
        StoreError::NoSpace { .. } => "make room, then do it again: what is there already is left as it is",
        StoreError::DamagedName { .. } => "`lbctl store check` tells what is damaged",
        _ => return Refused::new(error.to_string()),
    };
    Refused::with_help(error.to_string(), help)
}
