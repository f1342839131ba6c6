//! `voice-sync sync-once`.

use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Options, Output, in_time, open, print};
use crate::exit::{Exit, Failed};
use crate::pass::{Pass, Scope};
use crate::report::Report;
use crate::shutdown;
use crate::store::Access;

/// Ask about every voice in processing once, and exit.
#[derive(Debug, Args)]
pub(super) struct SyncOnce {
    /// Read and ask, but write and publish nothing.
    #[arg(long)]
    dry_run: bool,

    /// Only these voices, by row or provider id; set-aside ones too. May be repeated.
    #[arg(long, value_name = "ID", num_args = 1..)]
    voice: Vec<String>,

    /// At most so many voices; the next run goes on after them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// Come to an end after this time; the next run goes on.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_runtime: Option<Duration>,
}

impl SyncOnce {
    pub(super) async fn run(self, options: Options) -> Result<Exit, Failed> {
        let Self {
            dry_run,
            voice,
            limit,
            max_runtime,
        } = self;
        let scope = Scope {
            named: (!voice.is_empty()).then_some(voice),
            limit,
            max_runtime,
            dry_run,
        };
        let (url, names, rules) = (options.database_url()?, options.names()?, options.rules());
        let (provider, relay) = (options.provider()?, options.relay()?);
        let queue = options.queue()?;
        let access = if dry_run {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let opening = open(&url, &names, options.auto_migrate, access);
        let store = in_time(&url, opening).await?;
        let stop = CancellationToken::new();
        shutdown::on_signal(stop.clone());
        let report = Pass {
            store: &store,
            provider: &provider,
            relay: relay.as_ref(),
            queue: queue.as_ref(),
            rules: &rules,
            missing_after: options.missing_after,
            strategy: options.lookup,
            scope: &scope,
            stop: &stop,
            observe: &|_| {},
        }
        .run()
        .await;
        if let (Some(names), 0) = (&scope.named, report.counts.due) {
            warn!(
                voices = names.join(", "),
                "none of these is a voice in processing, by row or provider id"
            );
        }
        print(&text(&report, options.output))?;
        Ok(report.exit_code)
    }
}

fn text(report: &Report, output: Output) -> String {
    match output {
        Output::Text => report.to_string(),
        Output::Json => serde_json::to_string(report).expect("a report always serialises"),
    }
}
