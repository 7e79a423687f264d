//! Group commit: one thread does all writes in batches, makes a batch durable with one flush, and only then answers.
//!
//! While the disk is busy with one batch the next one gathers, so many writers share a flush and a lone one never waits
//! for others.

use super::trees::{Shared, Trees};
use super::{Answer, StoreError};
use futures::FutureExt;
use lb_common::token::SessionId;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Writes that share one flush at most: bounds the time until the first of them is answered.
const MAX_BATCH: usize = 1024;

/// Tells whoever waits that the write is over: durable, or failed.
type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Does a write in sled, or is told why it cannot be done.
type Apply = Box<dyn FnOnce(Result<&Trees, StoreError>) -> Done + Send>;

/// One write.
struct Job {
    /// The session that it may change.
    session: Option<SessionId>,
    apply: Apply,
}

/// Where writes are handed in.
pub(super) struct Queue(mpsc::UnboundedSender<Job>);

/// Does the writes.
pub(super) struct Committer {
    shared: Arc<Shared>,
    jobs: mpsc::UnboundedReceiver<Job>,
    batch: u64,
}

pub(super) fn pair(shared: Arc<Shared>) -> (Queue, Committer) {
    let (sender, jobs) = mpsc::unbounded_channel();
    (Queue(sender), Committer { shared, jobs, batch: 0 })
}

impl Queue {
    /// Hands in a write; it is under way whether or not the answer is waited for. The answer comes when all that `work`
    /// did, and all that it saw, is durable.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        session: Option<SessionId>,
        work: impl FnOnce(&Trees) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<'static, T> {
        let (sender, answer) = oneshot::channel();
        let apply = Box::new(move |trees: Result<&Trees, StoreError>| -> Done {
            let result = trees.and_then(work);
            // Whoever asked may have gone away; the write stands all the same.
            Box::new(move |flushed| drop(sender.send(flushed.and(result))))
        });
        // A closed queue drops the job, and with it the sender: the answer below says so.
        let _ = self.0.send(Job { session, apply });
        async move { answer.await.unwrap_or(Err(StoreError::Closed)) }.boxed()
    }
}

impl Committer {
    /// Works until every [`Queue`] is gone and everything handed in is done.
    pub(super) fn run(mut self) {
        let mut jobs = Vec::new();
        while self.jobs.blocking_recv_many(&mut jobs, MAX_BATCH) > 0 {
            self.commit(&mut jobs);
        }
    }

    fn commit(&mut self, jobs: &mut Vec<Job>) {
        self.batch += 1;
        let writes = jobs.len();
        if !self.shared.is_open() {
            self.shared.reopen();
        }
        let ready = self.shared.check_space();
        self.shared.begin(self.batch, jobs.iter().filter_map(|job| job.session));
        let mut waiting = Vec::with_capacity(writes);
        let applied = ready.clone().and_then(|()| {
            self.shared.with(|trees| {
                waiting.extend(jobs.drain(..).map(|job| (job.apply)(Ok(trees))));
                Ok(())
            })
        });
        if let Err(error) = &applied {
            // Nothing was touched: these writes certainly did not happen.
            waiting.extend(jobs.drain(..).map(|job| (job.apply)(Err(error.clone()))));
        }
        let flushed = match applied {
            Ok(()) => self.shared.flush(),
            Err(_) => Ok(()),
        };
        if let Err(error) = &flushed {
            tracing::error!(%error, writes, "session writes failed, none is acknowledged");
            self.shared.reopen();
        }
        self.shared.finish(self.batch, writes, flushed.is_err());
        for done in waiting {
            done(flushed.clone());
        }
    }
}
