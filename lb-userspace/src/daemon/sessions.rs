//! What lbctl asks of the database: one session shown or ended, a slot freed. Each answer is a task of its own, so that a slow
//! database keeps nobody else waiting.

use super::Daemon;
use crate::control::{Refused, Response, SessionView};
use crate::session::{Copies, Owner, Peers, Record, SessionStore, StoreError, unix_millis, visit};
use lb_common::token::SessionId;
use std::sync::Arc;
use tokio::sync::oneshot;

/// How often ending a session is tried while it is being changed.
const TRIES: usize = 64;

impl Daemon {
    pub(super) fn show_session(&self, text: &str, reply: oneshot::Sender<Response>) {
        match self.session_of(text) {
            Ok((view, id)) => {
                let owner = self.owner_names();
                let store = self.store.clone();
                tokio::spawn(async move {
                    let response = with_record(view, store.load(id).await, &owner, store.now());
                    let _ = reply.send(response);
                });
            }
            Err(refused) => {
                let _ = reply.send(Response::Refused(refused));
            }
        }
    }

    pub(super) fn end_session(&self, text: &str, reply: oneshot::Sender<Response>) {
        let id = SessionId::from_hex(text.as_bytes());
        match id.map_or_else(|| self.session_of(text).map(|(_, id)| id), Ok) {
            Ok(id) => {
                let (store, peers) = (self.store.clone(), self.peers.clone());
                tokio::spawn(async move {
                    let _ = reply.send(end(&*store, &peers, id).await);
                });
            }
            Err(refused) => {
                let _ = reply.send(Response::Refused(refused));
            }
        }
    }

    pub(super) fn forget_backend(&self, service: String, backend: String, reply: oneshot::Sender<Response>) {
        let name = format!("{service}/{backend}");
        if self.registry.is_leaving(&service, &backend) {
            let refused = Refused::with_help(
                format!("connections still live at {name}"),
                "`lbctl backend list` shows it as long as they do; forget it then",
            );
            let _ = reply.send(Response::Refused(refused));
            return;
        }
        if self.backends.keys().any(|slot| self.registry.name_of(*slot).is_some_and(|known| known == name)) {
            let refused = Refused::with_help(
                format!("{name} is configured here"),
                "take it out of the configuration first",
            );
            let _ = reply.send(Response::Refused(refused));
            return;
        }
        let store = self.store.clone();
        tokio::spawn(async move {
            let _ = reply.send(forget(&*store, &service, &backend).await);
        });
    }

    fn session_of(&self, text: &str) -> Result<(SessionView, SessionId), Refused> {
        let token = self.registry.verify(text).map_err(|error| {
            Refused::with_help(error.to_string(), "a token is the value of the session cookie, 44 characters")
        })?;
        let view = SessionView {
            token: self.registry.token_view(&token),
            found: false,
            version: None,
            owner: None,
            created_unix_ms: None,
            expires_unix_ms: None,
            state: None,
        };
        Ok((view, token.session))
    }

    /// Names of backends by slot.
    fn owner_names(&self) -> Vec<(u16, String)> {
        self.backends.keys().filter_map(|slot| Some((*slot, self.registry.name_of(*slot)?))).collect()
    }
}

/// Ends a session in the database, and in every server's memory before anyone hears of it.
async fn end(store: &dyn SessionStore, peers: &Arc<Peers>, id: SessionId) -> Response {
    for _ in 0..TRIES {
        let loaded = store.load(id).await.map(|found| found.filter(|record| !record.is_grave()));
        let ended = match loaded {
            Ok(None) => {
                return Response::Refused(Refused::new(format!(
                    "there is no session {id}: it has ended already, or never was"
                )));
            }
            Ok(Some(record)) => erase(store, peers, id, &record).await,
            Err(damaged @ StoreError::Damaged { .. }) => {
                // Whoever had a copy cannot make another.
                peers.void(id);
                // It has no revision to compare.
                match store.delete(id, 0).await {
                    Err(StoreError::Conflict) => Err(damaged),
                    ended => ended,
                }
            }
            Err(error) => Err(error),
        };
        // Whether it worked or failed half-way: nobody may answer from a copy of it.
        peers.void(id);
        match ended {
            Ok(()) => {
                tracing::info!(session = %id, "session ended by the operator");
                return Response::Done {
                    message: format!("session {id} has ended; whoever has its token begins anew"),
                };
            }
            Err(StoreError::Conflict) => {}
            Err(error) => return Response::Refused(Refused::new(error.to_string())),
        }
    }
    Response::Refused(Refused::with_help(
        format!("session {id} changed {TRIES} times while it was to be ended"),
        "it is in heavy use; try again",
    ))
}

/// Whoever sees that it is gone must be the last to see it: so first it belongs to nobody, then all copies go, which nobody
/// can make anew without changing it, and then it is deleted, unless it was changed.
async fn erase(
    store: &dyn SessionStore,
    peers: &Arc<Peers>,
    id: SessionId,
    record: &Record,
) -> Result<(), StoreError> {
    store.claim(id, record.revision, Owner::UNSETTLED, record.expires).await?;
    peers.void(id);
    let owned = Record { revision: record.revision + 1, ..record.clone() };
    visit::bury(store, id, &owned, store.now().unwrap_or_else(unix_millis)).await
}

async fn forget(store: &dyn SessionStore, service: &str, backend: &str) -> Response {
    let refused = |error: StoreError| Response::Refused(Refused::new(error.to_string()));
    let slots = match store.slots().await {
        Ok(slots) => slots,
        Err(error) => return refused(error),
    };
    match slots.into_iter().find(|(s, b, _)| (s.as_str(), b.as_str()) == (service, backend)) {
        None => Response::Refused(Refused::new(format!("{service}/{backend} has no slot"))),
        Some((.., slot)) => match store.forget_slot(service, backend).await {
            Ok(()) => Response::Done { message: format!("slot {slot} of {service}/{backend} is free") },
            Err(error) => refused(error),
        },
    }
}

fn with_record(
    mut view: SessionView,
    loaded: Result<Option<Record>, StoreError>,
    names: &[(u16, String)],
    now: Option<u64>,
) -> Response {
    match loaded {
        Ok(Some(record)) if !record.is_grave() && !record.is_expired(now.unwrap_or_else(unix_millis)) => {
            let slot = record.owner.slot;
            let name = names.iter().find(|(known, _)| *known == slot).map(|(_, name)| name.clone());
            let name = name.unwrap_or_else(|| format!("slot {slot}"));
            view.found = true;
            view.version = Some(record.version);
            view.owner = Some(match record.owner {
                Owner::UNSETTLED => "nobody yet: the next server that is asked for it".to_owned(),
                Owner { epoch, .. } => format!("{name} in epoch {epoch}"),
            });
            view.created_unix_ms = Some(record.created);
            view.expires_unix_ms = Some(record.expires);
            view.state = serde_json::to_value(&record.state).ok();
            Response::Session(Box::new(view))
        }
        Ok(_) => Response::Session(Box::new(view)),
        Err(error) => Response::Refused(Refused::new(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Instance, Limits, Sessions, SledStore, Source, Token};
    use futures::FutureExt;
    use tokio::sync::watch;

    /// Somebody finds that it is not in the database any more, before the operator hears of it.
    #[tokio::test]
    async fn no_server_shows_a_session_that_another_does_not_find_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(SledStore::open(&directory.path().join("store")).unwrap());
        let peers: Arc<Peers> = Arc::default();
        let instance = Instance { service: 1, slot: 1, epoch: 1, name: "a".into() };
        let instance = watch::channel(instance).1;
        let server =
            Sessions::new(instance, store.clone(), Limits::default(), peers.clone(), Arc::new(unix_millis));
        let id = server.write(None, |_| Ok(())).await.unwrap().0.id;
        let token = Some(Token { key_id: 0, service: 1, slot: 1, epoch: 1, session: id });
        assert_eq!(server.find(token).await.unwrap().unwrap().source, Source::Cache);
        let mut ending = std::pin::pin!(end(&*store, &peers, id));
        let mut early = None;
        while store.load(id).await.unwrap().is_some() {
            early = early.or_else(|| (&mut ending).now_or_never());
            tokio::task::yield_now().await;
        }
        assert!(server.find(token).await.unwrap().is_none());
        let done = match early {
            Some(done) => done,
            None => ending.await,
        };
        assert!(matches!(done, Response::Done { .. }), "{done:?}");
    }
}
