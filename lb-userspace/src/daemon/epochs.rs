//! Epochs of backends that lbd does not run: asked for when one comes back, and heard of when others gave them out.

use super::Event;
use crate::session::{SessionStore, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::UnboundedSender;

/// Pause after the database did not give an epoch.
const PAUSE: Duration = Duration::from_secs(1);

/// Asks the database until it answers: a backend without an epoch cannot serve.
pub(super) async fn ask(store: Arc<dyn SessionStore>, slot: u16, events: UnboundedSender<Event>) {
    let mut failing = false;
    loop {
        match store.next_epoch(slot).await {
            Ok(epoch) => {
                // When lbd is stopping, nobody wants to know.
                let _ = events.send(Event::Epoch { slot, epoch });
                return;
            }
            Err(StoreError::Closed) => return,
            // Told once, however long it takes.
            Err(error) if !failing => {
                failing = true;
                tracing::error!(slot, %error, "no next epoch; trying until there is one");
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Passes on what other processes give out, for as long as it is polled: applications behind backends that lbd does not
/// run, and other lbds. What was given out while nobody listened is asked for.
pub(super) async fn watch(store: Arc<dyn SessionStore>, events: UnboundedSender<Event>) {
    // Heard from now on, so that nothing falls between what is asked for and what is heard.
    let Some(mut announced) = store.epochs() else { return };
    let mut missed = true;
    loop {
        if missed {
            match store.given().await {
                Ok(given) => {
                    missed = false;
                    for (slot, epoch) in given.epochs {
                        let _ = events.send(Event::Announced { slot, epoch });
                    }
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "epochs that others gave out are not known yet");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
        }
        match announced.recv().await {
            Ok((slot, epoch)) => {
                let _ = events.send(Event::Announced { slot, epoch });
            }
            Err(RecvError::Lagged(_)) => missed = true,
            Err(RecvError::Closed) => return,
        }
    }
}
