//! A bar at the bottom of the terminal, and log lines above it.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::report::Counts;

/// The bar that is shown, if any is.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

const TIMES_A_SECOND: u8 = 10;

/// How far a pass is. On a terminal only: elsewhere nothing is written. Gone when it is dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Whether somebody would see it.
    pub fn is_seen() -> bool {
        io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    /// A bar for so many voices.
    pub fn begin(voices: u64) -> Self {
        let target = match Self::is_seen() {
            true => ProgressDrawTarget::stderr_with_hz(TIMES_A_SECOND),
            false => ProgressDrawTarget::hidden(),
        };
        let style =
            ProgressStyle::with_template("{bar:24} {pos} of {len}, {per_sec}, {eta} left: {msg}")
                .expect("the template is valid")
                .progress_chars("█▓░");
        let bar = ProgressBar::with_draw_target(Some(voices), target).with_style(style);
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self(bar)
    }

    /// Shows what has been counted so far.
    pub fn show(&self, counts: &Counts) {
        let Counts {
            completed,
            failed,
            processing,
            ..
        } = counts;
        let answered = counts.answered();
        self.0
            .set_length(self.0.length().unwrap_or(0).max(answered));
        self.0.set_position(answered);
        self.0.set_message(format!(
            "{completed} completed, {failed} failed, {processing} processing"
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.finish_and_clear();
    }
}

/// Standard error, whose lines go above the bar.
#[derive(Debug, Clone, Copy)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match shown {
            Some(bar) => bar.suspend(|| io::stderr().write(line)),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
