//! The output of a command's errors.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use clap::error::ErrorKind;
use serde_json::{Value, json};

use super::options::Output;
use super::output::show;
use super::status;
use crate::core::exit::{Exit, Failed};
use crate::core::format::in_line;
use crate::telemetry::logs;

/// Writes an error to stderr: as a log line if the log is JSON, otherwise in clap's format. With `--output json`, it is
/// also written to stdout.
pub(super) fn report(failed: &Failed, format: logs::Format, output: Output) {
    let (says, hint) = (failed.to_string(), failed.hint());
    write(failed.exit, &says, hint, format, output);
}

/// As results in JSON have it.
pub(super) fn json(failed: &Failed) -> Value {
    error(failed.exit, &failed.to_string(), failed.hint())
}

fn error(exit: Exit, says: &str, hint: Option<&str>) -> Value {
    json!({"error": {"code": exit.code(), "message": says, "hint": hint}})
}

fn write(exit: Exit, says: &str, hint: Option<&str>, format: logs::Format, output: Output) {
    if output == Output::Json {
        let error = error(exit, says, hint);
        // Nobody reads it, or it cannot be written: stderr has it in any case.
        let _unread = show(&error.to_string());
    }
    match format {
        logs::Format::Json => tracing::error!(exit_code = exit.code(), hint, "{says}"),
        logs::Format::Text => {
            let _unread = write_text(&in_line(says), hint);
        }
    }
}

fn write_text(says: &str, hint: Option<&str>) -> io::Result<()> {
    const ERROR: Style = AnsiColor::Red.on_default().bold();
    const HINT: Style = AnsiColor::Green.on_default();
    let mut stderr = anstream::stderr();
    writeln!(stderr, "{ERROR}error:{ERROR:#} {says}")?;
    match hint {
        Some(hint) => writeln!(stderr, "{HINT}hint:{HINT:#} {hint}"),
        None => Ok(()),
    }
}

/// The first paragraph of clap's own text of an error, in one line.
pub(super) fn message(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let says = rendered.trim();
    let says = says.strip_prefix("error: ").unwrap_or(says).lines();
    let first = says.map(str::trim).take_while(|line| !line.is_empty());
    first.collect::<Vec<_>>().join(" ")
}

/// Writes clap's own errors before the options are parsed. Only the words of the command line are known.
pub(super) fn usage(error: &clap::Error) -> ! {
    let is_help = !error.use_stderr();
    let words: Vec<_> = std::env::args().collect();
    let is_json = |option: &str, variable: &str| {
        let pair = words
            .windows(2)
            .any(|pair| pair[0] == option && pair[1] == "json");
        pair || words.contains(&format!("{option}=json"))
            || std::env::var(variable).is_ok_and(|value| value == "json")
    };
    let log = is_json("--log-format", "VOICE_SYNC_LOG_FORMAT");
    let output = is_json("--output", "VOICE_SYNC_OUTPUT");
    if is_help || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let says = message(error);
    let rendered = error.render().to_string();
    let tip = rendered
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let format = match log || !io::stderr().is_terminal() && logs::is_for_machines() {
        true => logs::Format::Json,
        false => logs::Format::Text,
    };
    logs::init(&logs::LogOptions {
        format,
        ..logs::LogOptions::default()
    });
    let output = if output { Output::Json } else { Output::Text };
    let hint = tip.or(Exit::Usage.hint());
    write(Exit::Usage, &says, hint, format, output);
    let is_plugin = words.iter().any(|word| word == "--check=nagios");
    if is_plugin && output == Output::Text {
        let _unread = show(&status::unknown(&says));
    }
    std::process::exit(i32::from(match is_plugin {
        true => status::NAGIOS_UNKNOWN,
        false => Exit::Usage.code(),
    }))
}
