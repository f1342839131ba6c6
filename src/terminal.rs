//! A bar at the bottom of the terminal, and log lines above it.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::report::Counts;
use crate::words;

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
        let text = one_line(&String::from_utf8_lossy(line));
        match shown {
            Some(bar) => bar.suspend(|| io::stderr().write_all(text.as_bytes()))?,
            None => io::stderr().write_all(text.as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// What is logged at once, as one line: ids and messages of others could forge further ones. Terminal codes in them
/// are escaped where the line is made, which has some of its own.
fn one_line(logged: &str) -> String {
    const ESCAPE: char = '\u{1b}';
    let (line, end) = match logged.strip_suffix('\n') {
        Some(line) => (line, "\n"),
        None => (logged, ""),
    };
    let mut text = String::with_capacity(logged.len());
    for c in line.chars() {
        match c {
            ESCAPE => text.push(c),
            c if words::breaks_lines(c) => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text.push_str(end);
    text
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_logged_is_one_line() {
        assert_eq!(
            one_line("a \u{1b}[31mb\u{1b}[0m c\n"),
            "a \u{1b}[31mb\u{1b}[0m c\n"
        );
        assert_eq!(
            one_line("a\nb\r\n\tc\u{2028}\u{202e}d\0\n"),
            "a\\nb\\r\\n\\tc\\u{2028}\\u{202e}d\\u{0}\n"
        );
        assert_eq!(one_line(""), "");
    }
}
