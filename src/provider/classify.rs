//! What a result means for the next requests: its class, whether to repeat the request, and the headers about it.
//! Pure.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

use super::admission::Outcome;
use super::error::{self, ProviderError};
use super::request::Purpose;
use super::state::backoff::{self, Cause};
use super::state::concurrency_limit::Plan;
use crate::core::lookup::UnavailableKind;
use crate::telemetry::metrics::Class;

/// Whether a repetition may help, for which cause, and how long the provider asks to wait.
pub(super) fn worth_repeating(error: &ProviderError) -> Option<(Cause, Option<Duration>)> {
    match error {
        ProviderError::Throttled { retry_after, .. } => Some((Cause::Throttled, *retry_after)),
        ProviderError::Unavailable(failure) => match failure.kind {
            UnavailableKind::Connect
            | UnavailableKind::Timeout
            | UnavailableKind::Broken
            | UnavailableKind::Internal
            | UnavailableKind::Status
            | UnavailableKind::Throttled => Some((Cause::Unavailable, failure.retry_after)),
            UnavailableKind::NotAsked | UnavailableKind::TooLarge | UnavailableKind::Unreadable => {
                None
            }
        },
        // A voice that hangs or has an unreadable answer will do so again.
        ProviderError::Unanswerable(failure) => match failure.kind {
            UnavailableKind::Broken | UnavailableKind::Internal | UnavailableKind::Status => {
                Some((Cause::Unavailable, failure.retry_after))
            }
            UnavailableKind::Connect
            | UnavailableKind::Timeout
            | UnavailableKind::Throttled
            | UnavailableKind::NotAsked
            | UnavailableKind::TooLarge
            | UnavailableKind::Unreadable => None,
        },
        ProviderError::NotFound
        | ProviderError::NoSuchEndpoint(_)
        | ProviderError::Unauthorized(..)
        | ProviderError::Forbidden(..)
        | ProviderError::Rejected(..) => None,
    }
}

pub(super) fn class<T>(answer: &Result<T, ProviderError>) -> Class {
    match answer {
        Ok(_) => Class::Ok,
        Err(ProviderError::NotFound | ProviderError::NoSuchEndpoint(_)) => Class::NotFound,
        Err(ProviderError::Unauthorized(..) | ProviderError::Forbidden(..)) => Class::Refused,
        Err(ProviderError::Rejected(..)) => Class::Rejected,
        Err(ProviderError::Throttled { .. }) => Class::Throttled,
        Err(ProviderError::Unavailable(failure) | ProviderError::Unanswerable(failure)) => {
            match failure.kind {
                UnavailableKind::Connect => Class::Connect,
                UnavailableKind::Timeout => Class::Timeout,
                UnavailableKind::Broken
                | UnavailableKind::TooLarge
                | UnavailableKind::Unreadable => Class::Broken,
                UnavailableKind::Internal | UnavailableKind::Status => Class::ServerError,
                UnavailableKind::Throttled => Class::Throttled,
                UnavailableKind::NotAsked => Class::Abandoned,
            }
        }
    }
}

/// The result of an attempt, for the limits. If a voice may be the cause of a failure, it counts only after this was
/// excluded.
pub(super) fn outcome<T>(answer: &Result<T, ProviderError>, purpose: Purpose) -> Outcome {
    match answer {
        Ok(_)
        | Err(
            ProviderError::NotFound
            | ProviderError::NoSuchEndpoint(_)
            | ProviderError::Unauthorized(..)
            | ProviderError::Forbidden(..)
            | ProviderError::Rejected(..),
        ) => Outcome::Answered,
        Err(ProviderError::Throttled { code, .. }) if error::is_about_concurrency(code) => {
            Outcome::TooMany
        }
        Err(ProviderError::Throttled { .. }) => Outcome::Busy,
        Err(ProviderError::Unavailable(failure) | ProviderError::Unanswerable(failure)) => {
            match failure.kind {
                UnavailableKind::NotAsked => Outcome::Abandoned,
                kind if kind.may_lie_in_a_voice() && purpose != Purpose::Liveness => {
                    Outcome::Abandoned
                }
                UnavailableKind::Connect
                | UnavailableKind::Timeout
                | UnavailableKind::Broken
                | UnavailableKind::Internal
                | UnavailableKind::Status
                | UnavailableKind::Unreadable
                | UnavailableKind::TooLarge
                | UnavailableKind::Throttled => Outcome::Unavailable,
            }
        }
    }
}

pub(super) fn plan(headers: &HeaderMap) -> Option<Plan> {
    let number = |name| headers.get(name)?.to_str().ok()?.trim().parse().ok();
    Some(Plan {
        current: number("current-concurrent-requests")?,
        maximum: number("maximum-concurrent-requests")?,
    })
}

pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    backoff::retry_after(
        |name| headers.get(name).and_then(|value| value.to_str().ok()),
        SystemTime::now(),
    )
}
