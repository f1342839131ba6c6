//! Logging: to stderr, as text for people or JSON for machines.

use std::io::IsTerminal;
use std::{env, io};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::terminal::Lines;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// Starts logging. `RUST_LOG` says how much (default `info`), of voice-sync only: libraries get to
/// warn and no more, since at finer levels some of them print what they send.
pub fn init(format: LogFormat) {
    let wanted = env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.trim().is_empty());
    let (level, misread) = match wanted.as_deref().unwrap_or("info").parse::<Targets>() {
        Ok(targets) => (targets, None),
        Err(error) => (Targets::new().with_default(Level::INFO), Some(error)),
    };
    let filter = level.and(filter_fn(|event: &Metadata<'_>| {
        event.target().starts_with("voice_sync") || *event.level() <= Level::WARN
    }));

    let terminal = io::stderr().is_terminal();
    let text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let colour = terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let journal = is_journal();
    let text_lines = || {
        fmt::layer()
            .with_writer(Lines::Text)
            .with_ansi(colour)
            .with_target(false)
    };
    let json_lines = || {
        let lines = fmt::layer()
            .with_writer(Lines::Json)
            .json()
            .flatten_event(true);
        // The one span that there may be is the trace.
        lines
            .with_current_span(cfg!(feature = "otel"))
            .with_span_list(false)
    };
    let lines = match (text, journal) {
        // The journal has a time of its own.
        (true, true) => text_lines().without_time().boxed(),
        (true, false) => text_lines().boxed(),
        (false, true) => json_lines().without_time().boxed(),
        (false, false) => json_lines().boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
    if let Some(error) = misread {
        tracing::warn!(%error, "RUST_LOG cannot be read; an example is RUST_LOG=debug");
    }
}

/// What the process does, as part of the trace of whoever started it: with the feature `otel`, its log lines
/// carry `trace_id` and `span_id`. The variable `TRACEPARENT` has the caller's, as OpenTelemetry passes
/// context in environments, in the form of W3C Trace Context; without it, a trace begins here.
#[cfg(feature = "otel")]
pub fn trace() -> tracing::Span {
    let caller = env::var("TRACEPARENT").ok();
    let trace_id = caller.as_deref().and_then(trace_id);
    let trace_id =
        trace_id.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned);
    let span_id = format!("{:016x}", fastrand::u64(1..));
    tracing::error_span!("voice-sync", trace_id, span_id)
}

/// No trace: log lines stay as they are.
#[cfg(not(feature = "otel"))]
pub fn trace() -> tracing::Span {
    tracing::Span::none()
}

/// The trace of a `traceparent` (<https://www.w3.org/TR/trace-context/#traceparent-header>): version, trace,
/// span and flags, in lower-case hexadecimal. Ids of zeros are none.
#[cfg(feature = "otel")]
fn trace_id(traceparent: &str) -> Option<&str> {
    let parts: Vec<_> = traceparent.split('-').collect();
    let [version, trace_id, span_id, _flags, ..] = parts.as_slice() else {
        return None;
    };
    let is_id = |text: &str, length| {
        let hexadecimal = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        text.len() == length
            && text.bytes().all(hexadecimal)
            && text.bytes().any(|byte| byte != b'0')
    };
    let known = version.len() == 2 && *version != "ff";
    (known && is_id(trace_id, 32) && is_id(span_id, 16)).then_some(trace_id)
}

/// Whether standard error is the journal itself, and not a file or pipe that a service directed it to
/// (systemd.exec(5), on `$JOURNAL_STREAM`).
fn is_journal() -> bool {
    let told = env::var("JOURNAL_STREAM").ok();
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        let stat = rustix::fs::fstat(io::stderr().as_fd()).ok();
        let stream = stat.map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
        told.is_some() && told == stream
    }
    #[cfg(not(unix))]
    {
        told.is_some()
    }
}

#[cfg(all(test, feature = "otel"))]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_traceparent_has_a_trace() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        for (text, id) in [
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                Some(trace),
            ),
            (
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later",
                Some(trace),
            ),
            (
                "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                None,
            ),
            (
                "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
                None,
            ),
            (
                "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                None,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                None,
            ),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736", None),
            ("", None),
        ] {
            assert_eq!(trace_id(text), id, "{text}");
        }
    }
}
