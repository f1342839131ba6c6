//! Failpoints: places at which tests inject faults. Each is named after the step that follows or has just been done.
//! They exist only with the feature `failpoints`, which releases do not have.
//!
//! `VOICE_SYNC_FAILPOINTS` lists the faults: `POINT=ACTION[%PERCENT][@N]`, separated by semicolons. The actions are
//! `abort` (the process dies as if by SIGKILL), `error` (the caller reports an error, even after a success) and
//! `stall:TIME`. `%20` applies to a fifth of the visits, `@3` only to the third.

/// Visits a failpoint. Returns whether the caller must report an error.
#[cfg(not(feature = "failpoints"))]
pub(crate) async fn visit(_point: &str) -> bool {
    false
}

/// A time limit, unless a test set a shorter one with `POINT=stall:TIME`.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn limit(_point: &str, limit: std::time::Duration) -> std::time::Duration {
    limit
}

#[cfg(feature = "failpoints")]
pub(crate) use chosen::{limit, visit};

#[cfg(feature = "failpoints")]
mod chosen {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    use std::{env, process};

    struct Fault {
        point: String,
        action: Action,
        percent: u8,
        only: Option<u64>,
        visits: AtomicU64,
    }

    #[derive(Clone, Copy)]
    enum Action {
        Abort,
        Error,
        Stall(Duration),
    }

    static FAULTS: LazyLock<Vec<Fault>> = LazyLock::new(|| {
        let text = env::var("VOICE_SYNC_FAILPOINTS").unwrap_or_default();
        let faults = text.split(';').filter(|fault| !fault.is_empty());
        faults
            .map(|fault| parse(fault).unwrap_or_else(|| panic!("no failpoint: {fault:?}")))
            .collect()
    });

    fn parse(text: &str) -> Option<Fault> {
        let (point, text) = text.split_once('=')?;
        let (text, only) = match text.split_once('@') {
            Some((text, nth)) => (text, Some(nth.parse().ok()?)),
            None => (text, None),
        };
        let (text, percent) = match text.split_once('%') {
            Some((text, percent)) => (text, percent.parse().ok()?),
            None => (text, 100),
        };
        let action = match text.split_once(':') {
            None if text == "abort" => Action::Abort,
            None if text == "error" => Action::Error,
            Some(("stall", time)) => Action::Stall(humantime::parse_duration(time).ok()?),
            None | Some(_) => return None,
        };
        Some(Fault {
            point: point.to_owned(),
            action,
            percent,
            only,
            visits: AtomicU64::new(0),
        })
    }

    /// A time limit, unless a test set a shorter one with `POINT=stall:TIME`.
    pub(crate) fn limit(point: &str, limit: Duration) -> Duration {
        let chosen = FAULTS.iter().find(|fault| fault.point == point);
        match chosen.map(|fault| fault.action) {
            Some(Action::Stall(chosen)) => chosen,
            Some(Action::Abort | Action::Error) | None => limit,
        }
    }

    /// Visits a failpoint. Returns whether the caller must report an error.
    pub(crate) async fn visit(point: &str) -> bool {
        for fault in FAULTS.iter().filter(|fault| fault.point == point) {
            let visit = fault.visits.fetch_add(1, Ordering::Relaxed) + 1;
            if fault.only.is_some_and(|only| only != visit) || fastrand::u8(..100) >= fault.percent
            {
                continue;
            }
            match fault.action {
                Action::Abort => process::abort(),
                Action::Error => return true,
                Action::Stall(time) => tokio::time::sleep(time).await,
            }
        }
        false
    }
}
