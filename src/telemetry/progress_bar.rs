//! A progress bar at the bottom of the terminal, and log lines above it.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::core::format;
use crate::core::report::Counts;

/// The progress bar on the terminal, if there is one.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

const TIMES_A_SECOND: u8 = 10;

/// No rate is known before the first answer.
const BEGINNING: &str = "{bar:24} 0 of {len}";
const UNDER_WAY: &str = "{bar:24} {pos} of {len}, {per_sec}, {eta} left: {msg}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template is valid")
        .progress_chars("█▓░")
}

/// The progress of a pass. It is shown only on a terminal, and removed when the value is dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Whether stderr is a terminal and a bar can be shown.
    pub fn is_seen() -> bool {
        io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    /// Creates a bar for this many voices.
    pub fn begin(voices: u64) -> Self {
        let target = match Self::is_seen() {
            true => ProgressDrawTarget::stderr_with_hz(TIMES_A_SECOND),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(voices), target).with_style(style(BEGINNING));
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self(bar)
    }

    /// Shows the current counts.
    pub fn show(&self, counts: &Counts) {
        let Counts {
            completed,
            failed,
            processing,
            ..
        } = counts;
        let answered = counts.answered();
        if answered == 0 {
            return;
        }
        if self.0.position() == 0 {
            self.0.set_style(style(UNDER_WAY));
        }
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

/// Standard error. Its lines are written above the bar.
#[derive(Debug, Clone, Copy)]
pub enum Lines {
    /// Text for people: each message is reduced to one line.
    Text,
    /// JSON: each message is already one line.
    Json,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text;
        let bytes = match self {
            Self::Json => line,
            Self::Text => {
                text = one_line(&String::from_utf8_lossy(line));
                text.as_bytes()
            }
        };
        match shown {
            Some(bar) => bar.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Makes one line of a log message, and keeps only terminal codes for colours. Untrusted ids and messages could
/// otherwise forge lines or control the terminal.
fn one_line(logged: &str) -> String {
    let (line, end) = match logged.strip_suffix('\n') {
        Some(line) => (line, "\n"),
        None => (logged, ""),
    };
    let mut text = String::with_capacity(logged.len());
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if let Some((colour, after)) = (c == '\u{1b}').then(|| colour(rest.as_str())).flatten() {
            text.push(c);
            text.push_str(colour);
            rest = after.chars();
        } else if format::breaks_lines(c) {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text.push_str(end);
    text
}

/// Splits the text after an escape character into a code that only sets a colour (ECMA-48, SGR) and the rest.
fn colour(text: &str) -> Option<(&str, &str)> {
    let parameters = text.strip_prefix('[')?;
    let length = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    let is_colour = parameters[length..].starts_with('m');
    is_colour.then(|| text.split_at('['.len_utf8() + length + 'm'.len_utf8()))
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_output_is_escaped_to_one_line() {
        assert_eq!(
            one_line("a \u{1b}[1;31mb\u{1b}[0m c\n"),
            "a \u{1b}[1;31mb\u{1b}[0m c\n"
        );
        assert_eq!(
            one_line("\u{1b}[2J\u{1b}]0;t\u{7}\u{1b}[31\u{1b}"),
            "\\u{1b}[2J\\u{1b}]0;t\\u{7}\\u{1b}[31\\u{1b}"
        );
        assert_eq!(
            one_line("a\nb\r\n\tc\u{2028}\u{202e}d\0\n"),
            "a\\nb\\r\\n\\tc\\u{2028}\\u{202e}d\\u{0}\n"
        );
        assert_eq!(one_line(""), "");
    }
}
