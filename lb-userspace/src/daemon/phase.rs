//! lbd while it starts or stops: what it waits for is told to whoever asks, and signals are heard, whatever takes long.

use super::event::Sources;
use crate::control::server::Call;
use crate::control::{PhaseView, Refused, Request, Response};
use std::time::Instant;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// What lbd waits for, and since when.
#[derive(Clone, Debug)]
pub(super) struct Step {
    phase: &'static str,
    waits_for: String,
    since: Instant,
}

impl Step {
    pub(super) fn new(phase: &'static str, waits_for: impl Into<String>) -> Self {
        Self { phase, waits_for: waits_for.into(), since: Instant::now() }
    }

    /// Answers a call as far as that is possible before lbd serves, or after it has.
    pub(super) fn answer(&self, call: Call) {
        let Self { phase, waits_for, since } = self;
        let response = match call.request {
            Request::Status {} => Response::Phase(PhaseView {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                phase: (*phase).to_owned(),
                waits_for: waits_for.clone(),
                seconds: since.elapsed().as_secs(),
            }),
            _ => Response::Refused(Refused::with_help(
                format!("lbd is {phase}: it waits for {waits_for}"),
                "`lbctl status` tells how far it is",
            )),
        };
        // An asker who has gone does not want the answer.
        let _ = call.reply.send(response);
    }
}

/// Answers and hears signals in a task of its own, while lbd starts.
pub(super) struct Starting {
    step: watch::Sender<Step>,
    stopped: watch::Receiver<Option<&'static str>>,
    /// Ends the task when it is sent or dropped.
    end: oneshot::Sender<()>,
    task: JoinHandle<Sources>,
}

impl Starting {
    pub(super) fn spawn(mut sources: Sources) -> Self {
        let (step, steps) = watch::channel(Step::new("starting", "its first step"));
        let (stop, stopped) = watch::channel(None);
        let (end, mut ended) = oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                let current = || steps.borrow().clone();
                tokio::select! {
                    _ = &mut ended => return sources,
                    signal = sources.answer_until_signal(current) => {
                        sources.stop_next(signal);
                        // Nobody listens to it any more when lbd has just started.
                        let _ = stop.send(Some(signal));
                    }
                }
            }
        });
        Self { step, stopped, end, task }
    }

    /// What the start waits for from here on.
    pub(super) fn waits_for(&self, what: impl Into<String>) {
        self.step.send_replace(Step::new("starting", what));
    }

    /// Resolves with the signal that ends lbd.
    pub(super) fn stopped(&self) -> impl Future<Output = &'static str> + use<> {
        let mut stopped = self.stopped.clone();
        async move {
            match stopped.wait_for(Option::is_some).await {
                Ok(signal) => signal.unwrap_or_default(),
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// The start is over. A signal that came meanwhile is the first event.
    pub(super) async fn finish(self) -> anyhow::Result<Sources> {
        let _ = self.end.send(());
        Ok(self.task.await?)
    }
}
