//! Results on stdout, and confirmations on a terminal.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, anyhow};

use crate::core::exit::{Exit, Failed};

/// Prints a command's result.
pub(super) fn print(text: &str) -> Result<(), Failed> {
    show(text).map(|_read| ()).map_err(unwritten)
}

/// Prints a result, and returns whether the reader still reads: one like `head` closes the pipe early. Colours are
/// omitted in a pipe or a file, with `NO_COLOR`, and on a dumb terminal.
pub(super) fn show(text: &str) -> io::Result<bool> {
    show_part(&format!("{text}\n"))
}

/// Prints a part of a result. The part contains its line ends.
pub(super) fn show_part(text: &str) -> io::Result<bool> {
    let mut out = anstream::stdout();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn unwritten(error: io::Error) -> Failed {
    let message = anyhow::Error::from(error).context("the result could not be written to stdout");
    Failed::new(Exit::Io, message)
}

/// The width of the terminal in columns; unlimited if stdout is not a terminal.
pub(super) fn width() -> u16 {
    // Programs expect one line per item.
    const IN_A_PIPE: u16 = u16::MAX;
    let size = terminal_size::terminal_size_of(io::stdout());
    size.map_or(IN_A_PIPE, |(width, _)| width.0)
}

/// Requests a confirmation on a terminal, and accepts only a plain yes. Without a terminal, nothing is done without
/// --yes.
pub(super) fn confirm(question: &str) -> Result<(), Failed> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let message = anyhow!("{question} There is no terminal to ask on, so nothing was done");
        return Err(Failed::usage(message).with_hint("add --yes to continue without a question"));
    }
    let ask = || {
        write!(io::stderr(), "{question} [y/N] ")?;
        io::stderr().flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok::<_, io::Error>(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
    };
    let answer = ask().context("the answer could not be read; --yes skips the question");
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failed::new(Exit::Declined, anyhow!("nothing was done"))),
        Err(message) => Err(Failed::new(Exit::Io, message)),
    }
}
