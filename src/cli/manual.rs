//! `voice-sync completions` and `voice-sync man`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, print};
use crate::core::exit::{Exit, Failed};

/// Print a shell's completions of voice-sync's commands and options.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync completions bash | sudo tee /etc/bash_completion.d/voice-sync
  voice-sync completions zsh >~/.zfunc/_voice-sync
  voice-sync completions fish >~/.config/fish/completions/voice-sync.fish")]
pub(super) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<Exit, Failed> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), NAME, &mut script);
        let script = String::from_utf8_lossy(&script);
        // clap_complete 4.6.11 writes the name of a program with a hyphen in two different ways, so that no label
        // matches after a subcommand.
        let script = script.replace("voice__subcmd__sync", "voice__sync");
        print(script.trim_end())?;
        Ok(Exit::Success)
    }
}

/// Print the manual page, or write the pages of all commands.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync man | man -l -
  sudo voice-sync man --dir /usr/local/share/man/man1")]
pub(super) struct Manual {
    /// Write a page for each command into this directory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

const NAME: &str = "voice-sync";

impl Manual {
    pub(super) fn run(&self) -> Result<Exit, Failed> {
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let written = match &self.dir {
            None => page(&command).and_then(|page| {
                print(String::from_utf8_lossy(&page).trim_end())
                    .map_err(|failed| io::Error::other(failed.message))
            }),
            Some(dir) => write_all(&command, NAME, dir),
        };
        let place = self.dir.as_deref().unwrap_or(Path::new("stdout"));
        written
            .with_context(|| format!("the manual could not be written to {}", place.display()))
            .map_err(|message| Failed::new(Exit::Io, message))?;
        Ok(Exit::Success)
    }
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}

fn write_all(command: &Command, name: &str, dir: &Path) -> io::Result<()> {
    fs::write(dir.join(format!("{name}.1")), page(command)?)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("{name}-{}", sub.get_name());
        write_all(sub, &name, dir)?;
    }
    Ok(())
}
