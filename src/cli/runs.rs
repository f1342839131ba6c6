//! `voice-sync runs`.

use clap::Args;

use super::{Options, Output, at, in_time, open, print, width};
use crate::core::exit::{Exit, Failed};
use crate::status;
use crate::store::Access;

/// List the last passes, and the commands that changed something.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync runs
  voice-sync runs --limit 1 --output json | jq '.[0].counts'")]
pub(super) struct Runs {
    /// At most this many, newest first.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

impl Runs {
    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        let (url, names) = (options.database_url()?, options.names()?);
        let opening = open(&url, &names, options.auto_migrate, Access::ReadOnly);
        let store = in_time(&url, opening).await?;
        let runs = store.runs(self.limit).await.map_err(at(&url))?;
        let shown = match options.output {
            Output::Json => serde_json::to_string(&runs).expect("a ledger always serialises"),
            Output::Text if runs.is_empty() => "no pass was made yet".to_owned(),
            Output::Text => status::runs(&runs, width()).trim_fmt(),
        };
        print(&shown)?;
        Ok(Exit::Success)
    }
}
