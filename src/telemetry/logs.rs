//! Logging: to stderr, as text for people or JSON for machines.

use std::io::IsTerminal;
use std::{env, io};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::telemetry::progress_bar::Lines;

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
        lines.with_current_span(false).with_span_list(false)
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
