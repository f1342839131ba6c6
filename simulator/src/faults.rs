//! Faults that prevent a request from being served: limits, outages and random errors.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::options::{Options, Outage};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Faults {
    outages: Vec<Outage>,
    rate_limit: Option<usize>,
    /// The times of the requests that were served in the last second.
    recent: Mutex<VecDeque<Instant>>,
    max_concurrent: Option<u32>,
    in_flight: Arc<AtomicU32>,
    error_rate: f64,
    latency: Duration,
    jitter: Duration,
    rng: Mutex<Rng>,
}

/// A slot of a concurrent request. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Place {
    in_flight: Arc<AtomicU32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Faults {
    pub(crate) fn new(options: &Options, rng: Rng) -> Self {
        Self {
            outages: options.outages.clone(),
            rate_limit: options.rate_limit.map(|limit| limit as usize),
            recent: Mutex::default(),
            max_concurrent: options.max_concurrent,
            in_flight: Arc::default(),
            error_rate: options.error_rate,
            latency: options.latency,
            jitter: options.jitter,
            rng: Mutex::new(rng),
        }
    }

    /// The answer during an outage of the provider, if there is one now.
    pub(crate) fn outage(&self, at: Duration) -> Option<Answer> {
        self.outages
            .iter()
            .any(|outage| outage.holds(at))
            .then(|| Answer::html(503, "Service Temporarily Unavailable"))
    }

    /// Reserves a slot for a request, or returns the answer if there is none.
    pub(crate) fn admit(&self) -> Result<Place, Answer> {
        self.within_rate()?;
        let place = self.take_place()?;
        self.chance()?;
        Ok(place)
    }

    /// The values of the concurrency headers: the current number and the maximum.
    pub(crate) fn concurrency(&self) -> Option<(u32, u32)> {
        let current = self.in_flight.load(Ordering::Relaxed);
        Some((current, self.max_concurrent?))
    }

    /// The duration of the next answer.
    pub(crate) fn delay(&self) -> Duration {
        if self.jitter.is_zero() {
            return self.latency;
        }
        self.latency + self.jitter.mul_f64(self.draw(Rng::f64))
    }

    fn within_rate(&self) -> Result<(), Answer> {
        let Some(limit) = self.rate_limit else {
            return Ok(());
        };
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.front().is_some_and(|at| now - *at >= SECOND) {
            recent.pop_front();
        }
        if recent.len() < limit {
            recent.push_back(now);
            return Ok(());
        }
        // A slot is free within a second, and the header contains whole seconds.
        let message = "The system is experiencing heavy traffic, please try again.";
        Err(Answer::error(429, "system_busy", message).with_header("retry-after", "1"))
    }

    fn take_place(&self) -> Result<Place, Answer> {
        let limit = self.max_concurrent.unwrap_or(u32::MAX);
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |current| {
                (current < limit).then(|| current + 1)
            })
            .map(|_| Place {
                in_flight: Arc::clone(&self.in_flight),
            })
            .map_err(|_| {
                let message =
                    format!("Too many concurrent requests. Your plan allows {limit} at once.");
                Answer::error(429, "too_many_concurrent_requests", &message)
            })
    }

    fn chance(&self) -> Result<(), Answer> {
        if self.error_rate <= 0.0 || self.draw(Rng::f64) >= self.error_rate {
            return Ok(());
        }
        // Some errors come from the application, some from a proxy in front of it, with or without a page.
        Err(match self.draw(|rng| rng.u8(0..4)) {
            0 => Answer::error(500, "internal_server_error", "Something went wrong."),
            1 => Answer::html(502, "Bad Gateway"),
            2 => Answer::html(504, "Gateway Time-out"),
            _ => Answer::empty(503),
        })
    }

    fn draw<T>(&self, from: impl FnOnce(&mut Rng) -> T) -> T {
        from(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    fn faults(options: &Options) -> Faults {
        Faults::new(options, Rng::with_seed(options.seed))
    }

    #[tokio::test(start_paused = true)]
    async fn rate_limit_holds_in_every_second() {
        let faults = faults(&Options {
            rate_limit: Some(2),
            ..Options::default()
        });
        let admitted = || faults.admit().is_ok();
        assert!(admitted());
        tokio::time::advance(Duration::from_millis(900)).await;
        assert_eq!([admitted(), admitted()], [true, false]);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!([admitted(), admitted()], [true, false]);
        tokio::time::advance(Duration::from_millis(900)).await;
        assert_eq!([admitted(), admitted()], [true, false]);

        let refusal = faults.admit().unwrap_err();
        assert_eq!(refusal.status, 429);
        assert!(
            refusal
                .headers
                .contains(&("retry-after".into(), "1".into()))
        );
    }

    #[test]
    fn dropping_a_permit_frees_its_slot() {
        let faults = faults(&Options {
            max_concurrent: Some(1),
            ..Options::default()
        });
        let place = faults.admit().unwrap();
        assert_eq!(faults.concurrency(), Some((1, 1)));
        assert_eq!(faults.admit().unwrap_err().status, 429);
        drop(place);
        assert_eq!(faults.concurrency(), Some((0, 1)));
        assert!(faults.admit().is_ok());
    }

    #[test]
    fn same_seed_fails_the_same_requests() {
        let run = |seed| {
            let faults = faults(&Options {
                error_rate: 0.3,
                seed,
                ..Options::default()
            });
            (0..1000)
                .map(|_| faults.admit().map_or_else(|answer| answer.status, |_| 200))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let failed = run(7).into_iter().filter(|status| *status >= 500).count();
        assert!((250..350).contains(&failed), "{failed}");
    }

    #[test]
    fn jitter_only_adds_latency() {
        let faults = faults(&Options {
            latency: Duration::from_millis(50),
            jitter: Duration::from_millis(10),
            ..Options::default()
        });
        for _ in 0..100 {
            let delay = faults.delay().as_millis();
            assert!((50..=60).contains(&delay), "{delay}");
        }
    }
}
