//! A closed loop: so many workers, each with one operation under way, for a while. How often one was done, and how long
//! each took, without sampling.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use std::future::Future;
use std::time::{Duration, Instant};

/// An operation that never waits lets the other workers on its processor go on after so many.
const PATIENCE: u64 = 64;
/// Nanoseconds that an operation may take and still be told apart.
const LONGEST: u64 = 60_000_000_000;

/// When operations count: caches and queues have settled, and every worker is at work.
#[derive(Clone, Copy)]
pub(super) struct Window {
    from: Instant,
    until: Instant,
}

impl Window {
    /// Of that length, after a quarter of it to settle.
    pub(super) fn new(time: Duration) -> Self {
        let from = Instant::now() + time / 4;
        Self { from, until: from + time }
    }
}

/// What one worker does in a window.
pub(super) struct Stint {
    window: Window,
    begun: Instant,
    turns: u64,
    /// Nanoseconds.
    times: Histogram<u64>,
    /// When an operation ended that outlasted the window, and how long it took.
    late: Option<(Instant, Duration)>,
}

impl Stint {
    fn new(window: Window, times: Histogram<u64>) -> Self {
        Self { window, begun: Instant::now(), turns: 0, times, late: None }
    }

    /// Whether there is time for another operation, which then begins. There is for a first one.
    pub(super) async fn goes_on(&mut self) -> bool {
        self.turns += 1;
        if self.turns.is_multiple_of(PATIENCE) {
            tokio::task::yield_now().await;
            self.begun = Instant::now();
        }
        self.turns == 1 || self.begun < self.window.until
    }

    /// The operation is done.
    pub(super) fn done(&mut self) {
        let now = Instant::now();
        if now >= self.window.until {
            self.late = Some((now, now - self.begun));
        } else if now >= self.window.from {
            self.times.saturating_record((now - self.begun).as_nanos() as u64);
        }
        self.begun = now;
    }
}

/// One measurement of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Operations a second.
    pub(super) rate: f64,
    /// Nanoseconds.
    pub(super) p50: u64,
    pub(super) p99: u64,
    /// Nanoseconds of processor time for each operation, of this process: the load's included, redis-server's not.
    pub(super) processor: u64,
}

/// Lets `workers` work side by side.
pub(super) async fn closed_loop<F>(
    workers: usize,
    time: Duration,
    work: impl Fn(usize, Stint) -> F,
) -> Result<Sample>
where
    F: Future<Output = Result<Stint>> + Send + 'static,
{
    let mut times = Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are in order");
    // Large, and made before the window opens.
    let each: Vec<_> = (0..workers).map(|_| times.clone()).collect();
    let (window, used) = (Window::new(time), processor_time()?);
    let start = |(worker, times)| tokio::spawn(work(worker, Stint::new(window, times)));
    let working: Vec<_> = each.into_iter().enumerate().map(start).collect();
    let (mut turns, mut late) = (0, None);
    for worker in working {
        let stint = worker.await.context("a worker panicked")??;
        // In the last turn nothing was done.
        turns += stint.turns.saturating_sub(1);
        late = late.into_iter().chain(stint.late).min();
        times.add(stint.times).expect("their bounds are the same");
    }
    let used = processor_time()? - used;
    let mut time = time;
    if times.is_empty() {
        // All were slower than the window is long: it ends with the first of them.
        let (end, took) = late.context("no worker did anything")?;
        times.saturating_record(took.as_nanos() as u64);
        time = end - window.from;
    }
    Ok(Sample {
        rate: times.len() as f64 / time.as_secs_f64(),
        p50: times.value_at_quantile(0.5),
        p99: times.value_at_quantile(0.99),
        processor: used.as_nanos() as u64 / turns.max(1),
    })
}

/// What this process has used so far.
fn processor_time() -> Result<Duration> {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("asking for the processor time used")?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counts_what_was_done_in_the_window() {
        let wait = Duration::from_millis(2);
        let work = move |_, mut stint: Stint| async move {
            while stint.goes_on().await {
                tokio::time::sleep(wait).await;
                stint.done();
            }
            Ok(stint)
        };
        let sample = closed_loop(4, Duration::from_millis(100), work).await.unwrap();
        // No worker can do more than one in two milliseconds; one may end at each edge of the window.
        assert!(sample.rate > 0.0 && sample.rate <= 4.0 * 51.0 * 10.0, "{sample:?}");
        assert!(sample.p50 >= 2_000_000 && sample.p99 >= sample.p50, "{sample:?}");
    }

    #[tokio::test]
    async fn what_outlasts_the_window_is_counted_once() {
        let wait = Duration::from_millis(20);
        let work = move |_, mut stint: Stint| async move {
            while stint.goes_on().await {
                tokio::time::sleep(wait).await;
                stint.done();
            }
            Ok(stint)
        };
        let sample = closed_loop(2, Duration::from_millis(1), work).await.unwrap();
        assert!(sample.rate > 0.0 && sample.rate <= 1.0 / 0.019, "{sample:?}");
        assert!(sample.p50 >= 19_900_000 && sample.p50 == sample.p99, "{sample:?}");
    }

    #[tokio::test]
    async fn a_failed_operation_fails_the_measurement() {
        let work = |worker, stint: Stint| async move {
            anyhow::ensure!(worker != 2, "worker {worker} met a problem");
            Ok(stint)
        };
        let error = closed_loop(4, Duration::from_millis(1), work).await.unwrap_err();
        assert_eq!(error.to_string(), "worker 2 met a problem");
    }
}
