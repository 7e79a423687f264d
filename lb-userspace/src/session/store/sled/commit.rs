//! Group commit: one thread does all writes in batches, makes a batch durable with one flush, and only then answers.
//!
//! While the disk is busy with one batch the next one gathers, so many writers share a flush and a lone one never waits
//! for others. Writers that write again as soon as they are answered would form two halves, each waiting for the
//! other's flush before its own: so where a flush takes long, those just answered get a part of that time to come back
//! before the next batch begins.

use super::trees::{Shared, Trees};
use super::{Answer, StoreError};
use crate::panics;
use futures::FutureExt;
use lb_common::token::SessionId;
use parking_lot::{Condvar, Mutex};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Writes that share one flush at most: bounds the time until the first of them is answered.
const MAX_BATCH: usize = 1024;
/// Those who were answered have this part of a flush's time to come back.
const PART: u32 = 4;
/// Where a flush takes less, the other half comes in while it is under way, and waiting only leaves the disk idle.
const LONG_FLUSH: Duration = Duration::from_millis(1);
/// After a wait for which few came back, so many batches wait for nobody.
const REST: u32 = 16;

/// Tells whoever waits that the write is over: durable, or failed.
type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Does a write in sled, or is told why it cannot be done.
type Apply = Box<dyn FnOnce(Result<&Trees, StoreError>) -> Done + Send>;

/// What a write may do to sessions.
#[derive(Default)]
pub(super) struct Touches {
    /// Those that it may change.
    pub(super) ids: Vec<SessionId>,
    /// Whether it may add or remove them.
    pub(super) counted: bool,
    /// Whether it is done on a full disk, too.
    pub(super) frees: bool,
}

/// One write.
struct Job {
    touches: Touches,
    apply: Apply,
}

/// Where writes are handed in.
pub(super) struct Queue(Arc<Desk>);

/// Between those who write and the committer.
#[derive(Default)]
struct Desk {
    tray: Mutex<Tray>,
    /// The committer waits, and there are as many as it waits for, or no more will come.
    enough: Condvar,
}

#[derive(Default)]
struct Tray {
    jobs: Vec<Job>,
    /// Jobs that the committer waits for; 0 when it does not.
    wanted: usize,
    /// There is no queue any more, or no committer.
    closed: bool,
}

/// Does the writes.
pub(super) struct Committer {
    shared: Arc<Shared>,
    desk: Arc<Desk>,
    batch: u64,
}

pub(super) fn pair(shared: Arc<Shared>) -> (Queue, Committer) {
    let desk = Arc::<Desk>::default();
    (Queue(desk.clone()), Committer { shared, desk, batch: 0 })
}

impl Desk {
    /// A job that comes too late is dropped, and with it whoever was to be told.
    fn put(&self, job: Job) {
        let mut tray = self.tray.lock();
        if !tray.closed {
            tray.jobs.push(job);
            if tray.jobs.len() == tray.wanted {
                self.enough.notify_one();
            }
        }
    }

    /// Waits for a job, and for `crowd` of them until `until`. Nothing: no more will come.
    fn take(&self, crowd: usize, until: Instant) -> Vec<Job> {
        let mut tray = self.tray.lock();
        while tray.jobs.is_empty() && !tray.closed {
            tray.wanted = 1;
            self.enough.wait(&mut tray);
        }
        while tray.jobs.len() < crowd && !tray.closed {
            tray.wanted = crowd;
            if self.enough.wait_until(&mut tray, until).timed_out() {
                break;
            }
        }
        tray.wanted = 0;
        let rest = tray.jobs.len().min(MAX_BATCH);
        let rest = tray.jobs.split_off(rest);
        std::mem::replace(&mut tray.jobs, rest)
    }

    fn waiting(&self) -> usize {
        self.tray.lock().jobs.len()
    }

    /// No more jobs are taken.
    fn close(&self) {
        self.tray.lock().closed = true;
        self.enough.notify_one();
    }

    fn clear(&self) -> Vec<Job> {
        std::mem::take(&mut self.tray.lock().jobs)
    }
}

impl Queue {
    /// Hands in a write; it is under way whether or not the answer is waited for. The answer comes when all that `work`
    /// did, and all that it saw, is durable.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        touches: Touches,
        work: impl FnOnce(&Trees) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<'static, T> {
        let (sender, answer) = oneshot::channel();
        let apply = Box::new(move |trees: Result<&Trees, StoreError>| -> Done {
            let result = trees.and_then(work);
            // Whoever asked may have gone away; the write stands all the same.
            Box::new(move |flushed| drop(sender.send(flushed.and(result))))
        });
        // Without a committer the job is dropped, and with it the sender: the answer below says so.
        self.0.put(Job { touches, apply });
        async move { answer.await.unwrap_or(Err(StoreError::Closed)) }.boxed()
    }
}

impl Drop for Queue {
    /// The committer finishes what it has.
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Committer {
    /// Works until the [`Queue`] is gone and everything handed in is done. A panic stops the store.
    pub(super) fn run(mut self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work())) {
            self.shared.stop(format!("its commit thread panicked: {}", panics::message(&*panic)));
        }
    }

    fn work(&mut self) {
        let mut pace = Pace::new(Instant::now());
        loop {
            let mut jobs = self.desk.take(pace.crowd(), pace.until);
            if jobs.is_empty() {
                return;
            }
            pace.begins(jobs.len());
            self.commit(&mut jobs, &mut pace);
        }
    }

    fn commit(&mut self, jobs: &mut Vec<Job>, pace: &mut Pace) {
        self.batch += 1;
        let writes = jobs.len();
        if self.shared.running().is_ok() && !self.shared.is_open() {
            self.shared.reopen();
        }
        let mut waiting = Vec::with_capacity(writes);
        let refuse = |job: Job, error: &StoreError| (job.apply)(Err(error.clone()));
        if let Err(error) = self.shared.running().and_then(|()| self.shared.check_space()) {
            // Nothing was touched: these writes certainly did not happen.
            let full = matches!(error, StoreError::NoSpace { .. });
            let refused = jobs.extract_if(.., |job| !(full && job.touches.frees));
            waiting.extend(refused.map(|job| refuse(job, &error)));
        }
        self.shared.begin(self.batch, jobs.iter().flat_map(|job| job.touches.ids.iter().copied()));
        let counted = jobs.iter().filter(|job| job.touches.counted);
        let counted: Vec<_> = counted.flat_map(|job| job.touches.ids.iter().copied()).collect();
        let tally = match counted.is_empty() {
            true => Ok(None),
            false => self.shared.begin_count(counted).map(Some),
        };
        let begun = Instant::now();
        let flushed = if jobs.is_empty() {
            Ok(())
        } else {
            // What an error of sled leaves is for the flush to find out.
            let applied = tally.and_then(|tally| {
                self.shared.with(|trees| {
                    waiting.extend(jobs.drain(..).map(|job| (job.apply)(Ok(trees))));
                    Ok(())
                })?;
                tally.map_or(Ok(()), |tally| self.shared.end_count(&tally))
            });
            if let Err(error) = &applied {
                waiting.extend(jobs.drain(..).map(|job| refuse(job, error)));
            }
            let flushed = if self.shared.is_open() { self.shared.flush() } else { Ok(()) };
            flushed.and(applied)
        };
        if let Err(error) = &flushed {
            tracing::error!(%error, writes, "session writes failed, none is acknowledged");
        }
        self.shared.finish(self.batch, writes);
        pace.answers(writes, self.desk.waiting(), begun, Instant::now());
        for done in waiting {
            done(flushed.clone());
        }
    }
}

impl Drop for Committer {
    /// Whoever waits for a committer that panicked is told.
    fn drop(&mut self) {
        self.desk.close();
        drop(self.desk.clear());
    }
}

/// How long the next batch waits, and for whom.
struct Pace {
    /// Writes of the last batch.
    answered: usize,
    /// Writes that had come when those were answered.
    ahead: usize,
    until: Instant,
    /// Batches that wait for nobody.
    rest: u32,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { answered: 0, ahead: 0, until: now, rest: 0 }
    }

    /// Jobs that the next batch waits for, until `until`.
    fn crowd(&self) -> usize {
        if self.rest > 0 { 1 } else { (self.answered + self.ahead).min(MAX_BATCH) }
    }

    /// A batch of so many begins.
    fn begins(&mut self, jobs: usize) {
        let came_back = jobs.saturating_sub(self.ahead);
        if self.rest > 0 {
            self.rest -= 1;
        } else if came_back * 2 < self.answered {
            self.rest = REST;
        }
    }

    /// A batch of so many is about to be answered, after a flush that began at `begun`; `ahead` came meanwhile.
    fn answers(&mut self, jobs: usize, ahead: usize, begun: Instant, now: Instant) {
        let flush = now - begun;
        let patience = if flush < LONG_FLUSH { Duration::ZERO } else { flush / PART };
        (self.answered, self.ahead, self.until) = (jobs, ahead, now + patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(4);

    /// Of one batch after the other: for how many it waits, how many come, how many come while it is written.
    fn run(pace: &mut Pace, now: Instant, rows: &[(usize, usize, usize)]) {
        for (n, (crowd, jobs, ahead)) in rows.iter().enumerate() {
            assert_eq!(pace.crowd().max(1), *crowd, "batch {n}");
            pace.begins(*jobs);
            pace.answers(*jobs, *ahead, now, now + SLOW);
        }
    }

    #[test]
    fn a_lone_writer_waits_for_nobody() {
        let now = Instant::now();
        run(&mut Pace::new(now), now, &[(1, 1, 0), (1, 1, 0), (1, 1, 0)]);
    }

    #[test]
    fn two_halves_become_one() {
        let now = Instant::now();
        run(&mut Pace::new(now), now, &[(1, 1, 63), (64, 64, 0), (64, 64, 0)]);
    }

    #[test]
    fn nobody_waits_long_for_those_who_do_not_come_back() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        run(&mut pace, now, &[(1, 8, 8), (16, 8, 8)]);
        for _ in 0..REST {
            run(&mut pace, now, &[(1, 8, 8)]);
        }
        run(&mut pace, now, &[(16, 8, 8)]);
    }

    #[test]
    fn only_a_slow_disk_is_waited_with() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.answers(1, 1, now, now + LONG_FLUSH / 2);
        assert_eq!(pace.until, now + LONG_FLUSH / 2);
        pace.answers(1, 1, now, now + SLOW);
        assert_eq!(pace.until, now + SLOW + SLOW / PART);
    }

    #[test]
    fn what_was_handed_in_is_taken_before_the_end() {
        let desk = Desk::default();
        let job = || Job { touches: Touches::default(), apply: Box::new(|_| Box::new(|_| ())) };
        let far = Instant::now() + Duration::from_secs(3600);
        (0..3).for_each(|_| desk.put(job()));
        assert_eq!(desk.take(3, far).len(), 3);
        desk.put(job());
        desk.close();
        desk.put(job());
        // Nobody else will come, so nobody is waited for.
        assert_eq!(desk.take(3, far).len(), 1);
        assert_eq!(desk.take(3, far).len(), 0);
    }

    #[test]
    fn the_last_one_awaited_wakes_the_committer() {
        let desk = Desk::default();
        let far = Instant::now() + Duration::from_secs(3600);
        std::thread::scope(|threads| {
            let taken = threads.spawn(|| desk.take(64, far).len());
            for _ in 0..64 {
                desk.put(Job { touches: Touches::default(), apply: Box::new(|_| Box::new(|_| ())) });
            }
            assert_eq!(taken.join().unwrap(), 64);
        });
    }
}
