//! Results on stdout, and questions on a terminal.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, anyhow};

use crate::core::exit::{Exit, Failed};

/// Prints a command's result.
pub(super) fn print(text: &str) -> Result<(), Failed> {
    show(text).map(|_read| ()).map_err(unwritten)
}

/// Prints a result, and returns whether anybody still reads: who reads no further, as `head` does, has what
/// they wanted. Colours are left out where they are not wanted: in a pipe or a file, with `NO_COLOR`, on a
/// dumb terminal.
pub(super) fn show(text: &str) -> io::Result<bool> {
    show_part(&format!("{text}\n"))
}

/// The same, of a result that is printed part by part, with its line ends.
pub(super) fn show_part(text: &str) -> io::Result<bool> {
    let mut out = anstream::stdout();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn unwritten(error: io::Error) -> Failed {
    Failed {
        exit: Exit::Io,
        message: anyhow::Error::from(error).context("the result could not be written to stdout"),
    }
}

/// The columns of the terminal; elsewhere as many as there may be.
pub(super) fn width() -> u16 {
    // Whoever reads it there wants a line for each thing.
    const IN_A_PIPE: u16 = u16::MAX;
    let size = terminal_size::terminal_size_of(io::stdout());
    size.map_or(IN_A_PIPE, |(width, _)| width.0)
}

/// Asks on a terminal whether to go on, and takes only a plain yes for one. Where nobody can be asked, nothing is done
/// without --yes.
pub(super) fn confirm(question: &str) -> Result<(), Failed> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failed {
            exit: Exit::Usage,
            message: anyhow!(
                "{question} There is no terminal to ask on, so nothing was done; add --yes to continue"
            ),
        });
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
        Ok(false) => Err(Failed {
            exit: Exit::Declined,
            message: anyhow!("nothing was done"),
        }),
        Err(message) => Err(Failed {
            exit: Exit::Io,
            message,
        }),
    }
}
