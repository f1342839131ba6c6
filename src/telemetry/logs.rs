//! Logging to stderr, as text for people or JSON for machines.

use std::io::IsTerminal;
use std::{env, io, process};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::telemetry::progress_bar::Lines;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The format and the level of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogOptions {
    pub format: Format,
    pub colour: bool,
    /// `None`: the level of `RUST_LOG`, or else `info`.
    pub level: Option<LevelFilter>,
}

/// Whether stderr is read by machines: the systemd journal or the log of a container.
pub fn is_for_machines() -> bool {
    const FIRST_PROCESS: u32 = 1;
    is_journal()
        || env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        || process::id() == FIRST_PROCESS
}

/// Starts logging. Libraries log only warnings and errors, because at finer levels some of them log what they send.
pub fn init(options: &LogOptions) {
    let LogOptions {
        format,
        colour,
        level,
    } = *options;
    let wanted = env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.trim().is_empty());
    let wanted = wanted.as_deref().unwrap_or("info").parse::<Targets>();
    let (targets, misread) = match (level, wanted) {
        (Some(level), _) => (Targets::new().with_default(level), None),
        (None, Ok(targets)) => (targets, None),
        (None, Err(error)) => (Targets::new().with_default(Level::INFO), Some(error)),
    };
    let filter = targets.and(filter_fn(|event: &Metadata<'_>| {
        event.target().starts_with("voice_sync") || *event.level() <= Level::WARN
    }));
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
    let lines = match (format, is_journal()) {
        // The journal adds timestamps itself.
        (Format::Text, true) => text_lines().without_time().boxed(),
        (Format::Text, false) => text_lines().boxed(),
        (Format::Json, true) => json_lines().without_time().boxed(),
        (Format::Json, false) => json_lines().boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
    if let Some(error) = misread {
        tracing::warn!(%error, "RUST_LOG cannot be read; an example is RUST_LOG=debug");
    }
}

/// Whether standard error is the journal itself, not a file or pipe to which a service redirected it (systemd.exec(5),
/// on `$JOURNAL_STREAM`).
fn is_journal() -> bool {
    let stream = env::var("JOURNAL_STREAM").ok();
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        let stat = rustix::fs::fstat(io::stderr().as_fd()).ok();
        let own = stat.map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
        stream.is_some() && stream == own
    }
    #[cfg(not(unix))]
    {
        stream.is_some()
    }
}

pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}
