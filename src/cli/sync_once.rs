//! `voice-sync sync-once`.

use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use futures_util::future::join;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::ping::Ping;
use super::{
    Budget, FIND_IDS, Nudge, Options, Output, UNFINISHED, at, in_time, open, print,
    warn_of_statuses, warn_without_events,
};
use crate::cli::{secrets, shutdown};
use crate::core::exit::{Exit, Failed};
use crate::core::report::Report;
use crate::daemon::{self, DUE_AT_ONCE};
use crate::deadline::Deadline;
use crate::store::{Access, DatabaseUrl, Selection, Store};
use crate::sync::{Pass, Scope, Which};
use crate::telemetry::exposition::Metrics;
use crate::telemetry::progress_bar::Progress;

/// Look up every voice in processing once, and exit.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync sync-once --dry-run
  voice-sync sync-once --voice 6f1c2b34-5d6e-4f70-8a9b-0c1d2e3f4a5b
  voice-sync sync-once --due --max-runtime 5m
  voice-sync sync-once --wait 10m --output json | jq .completed")]
pub(super) struct SyncOnce {
    /// Look voices up, but write and publish nothing.
    #[arg(long)]
    dry_run: bool,

    /// Only these voices, by row or provider id, even if they are set aside. May be repeated.
    #[arg(long, value_name = "ID", num_args = 1..)]
    voice: Vec<String>,

    /// At most this many voices. The next run continues after them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// Only voices that are due, on the schedule of the daemon.
    #[arg(long, conflicts_with = "voice")]
    due: bool,

    /// Continue until no voice is in processing, or until this time is over.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration,
        conflicts_with_all = ["dry_run", "voice", "limit"])]
    wait: Option<Duration>,

    #[command(flatten)]
    budget: Budget,

    #[command(flatten)]
    nudge: Nudge,

    /// Stop after this time. The next run continues.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_runtime: Option<Duration>,

    /// Ping this URL at the start and the end of the run, as healthchecks.io expects it: /start, then the URL itself for
    /// success or /EXIT-CODE. VOICE_SYNC_PING_URL_FILE names a file that holds it.
    #[arg(
        long,
        value_name = "URL",
        env = "VOICE_SYNC_PING_URL",
        hide_env_values = true
    )]
    ping_url: Option<String>,

    /// Update the metrics in this file, for node_exporter's textfile collector.
    #[arg(long, value_name = "PATH")]
    metrics_file: Option<PathBuf>,
}

/// The time for a pass to write its results after `--max-runtime`.
const CLOSING_TIME: Duration = Duration::from_secs(5);
/// Voices that one statement looks for.
const NAMES_AT_ONCE: usize = 100;
/// The time to report after that.
const REPORTING_TIME: Duration = Duration::from_secs(1);

impl SyncOnce {
    pub(super) async fn run(mut self, options: Options) -> Result<Exit, Failed> {
        let metrics = Metrics::default();
        let metrics_file = self.metrics_file.take();
        let (output, is_quiet) = (options.output, options.quiet);
        let ping = secrets::ping_url(self.ping_url.take()).map_err(Failed::config)?;
        let ping = ping.as_ref().map(Ping::new).transpose();
        // A dry run says nothing about the runs that are watched.
        let ping = ping.map_err(Failed::usage)?.filter(|_| !self.dry_run);
        let started = async {
            if let Some(ping) = &ping {
                ping.start().await;
            }
        };
        let (mut ended, ()) = join(self.within_its_time(options, &metrics), started).await;
        if let Err(failed) = &ended {
            metrics.exited(failed.exit);
        }
        if let Some(path) = metrics_file
            && let Err(error) = metrics.write(&path)
        {
            error!(%error, path = %path.display(), "the metrics file (--metrics-file) could not be written");
            if let Ok(report) = &mut ended
                && report.exit_code == Exit::Success
            {
                report.exit_code = Exit::Io;
            }
        }
        if let Some(ping) = &ping {
            let exit = ended
                .as_ref()
                .map_or_else(|failed| failed.exit, |report| report.exit_code);
            ping.end(exit).await;
        }
        let report = ended?;
        if output == Output::Json || !is_quiet {
            print(&text(&report, output))?;
        }
        Ok(report.exit_code)
    }

    async fn within_its_time(self, options: Options, metrics: &Metrics) -> Result<Report, Failed> {
        let longest = self.wait.into_iter().chain(self.max_runtime).min();
        let until = longest.and_then(|longest| Instant::now().checked_add(longest));
        let deadline = Deadline::never();
        if let Some(until) = until {
            deadline.bring_forward(until + CLOSING_TIME);
        }
        let hanging = async {
            deadline.passed().await;
            sleep(REPORTING_TIME).await;
        };
        tokio::select! {
            exit = self.sync(options, until, &deadline, metrics) => exit,
            () = hanging => Err(Failed::new(Exit::Temporary, anyhow!(UNFINISHED))),
        }
    }

    async fn sync(
        self,
        options: Options,
        until: Option<Instant>,
        deadline: &Deadline,
        metrics: &Metrics,
    ) -> Result<Report, Failed> {
        let Self {
            dry_run,
            voice,
            limit,
            due,
            wait,
            budget,
            nudge,
            max_runtime: _,
            metrics_file: _,
            ping_url: _,
        } = self;
        let (url, names, rules) = (options.database_url()?, options.names()?, options.rules());
        let provider = options.provider()?.counting_in(metrics.provider.clone());
        let (publisher, queue) = (options.publisher()?, options.queue()?);
        let access = if dry_run {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let opening = open(&url, &names, options.auto_migrate, access);
        let store = in_time(&url, opening).await?.until(deadline.clone());
        let nudger = nudge.nudger(wait.is_some(), &metrics.nudges);
        let nudger = nudger.filter(|_| !dry_run);
        let stop = CancellationToken::new();
        shutdown::on_signal(stop.clone(), deadline.clone());
        let scope = Scope {
            budget: None,
            which: match (voice.is_empty(), due) {
                (false, _) => Which::Named(voice),
                (true, true) => due_now(&url, &store).await?,
                (true, false) => Which::All,
            },
            limit,
            until,
            dry_run,
            continuous: false,
        };
        if let Which::Named(names) = &scope.which {
            refuse_unknown(names, &store, &url).await?;
        }
        let progress = Progress::begin(match Progress::is_seen() {
            true => meant(&store, &scope).await,
            false => 0,
        });
        let pass = Pass {
            store: &store,
            provider: &provider,
            publisher: publisher.as_ref(),
            queue: queue.as_ref(),
            nudger: nudger.as_ref(),
            rules: &rules,
            missing_after: options.missing_after,
            strategy: options.lookup,
            scope: &scope,
            stop: &stop,
            metrics: &metrics.pass,
            observe: &|counts| progress.show(counts),
        };
        let without_events = publisher.is_none() && !options.wants_no_events();
        let mut report = pass.run().await;
        metrics.passed(&report);
        continue_while_many_are_due(pass, &url, metrics, &mut report).await?;
        if let (Which::Named(names), 0) = (&scope.which, report.counts.due) {
            warn!(
                voices = names.join(", "),
                "none of these voices is in processing"
            );
        }
        if report.counts.due == 0 || report.counts.finished() > 0 {
            warn_of_statuses(&store, &names.statuses).await;
        }
        if wait.is_some() {
            let budget = budget.request_budget;
            let waiting = daemon::until_nothing_waits(pass, budget, metrics, report, until);
            let nudging = async {
                match &nudger {
                    Some(nudger) => nudger.run(&store, &provider).await,
                    None => pending().await,
                }
            };
            report = tokio::select! {
                report = waiting => report,
                never = nudging => match never {},
            };
        }
        if without_events && !dry_run {
            let _warned = warn_without_events(&report);
        }
        // The ledger of this database already contains the success. Without tables of its own, only this process knows
        // it.
        let is_for_all = matches!(scope.which, Which::All | Which::Due(_)) && !dry_run;
        if report.exit_code == Exit::Success && is_for_all && !report.counts.only_met_leases() {
            metrics.succeeded();
        }
        if let Ok(overview) = store.overview().await {
            metrics.stand(&overview);
        }
        metrics.press(provider.pressure());
        drop(progress);
        Ok(report)
    }
}

/// Repeats passes over the voices that are due until all of them fit into one agenda.
async fn continue_while_many_are_due(
    pass: Pass<'_>,
    url: &DatabaseUrl,
    metrics: &Metrics,
    report: &mut Report,
) -> Result<(), Failed> {
    let mut scope = pass.scope.clone();
    while is_one_of_many(&scope.which) && scope.limit.is_none() && report.exit_code == Exit::Success
    {
        scope.which = due_now(url, pass.store).await?;
        let later = Pass {
            scope: &scope,
            ..pass
        };
        let later = later.run().await;
        metrics.passed(&later);
        report.merge(later);
    }
    Ok(())
}

/// If no row has a given id, it is probably a typing error.
async fn refuse_unknown(names: &[String], store: &Store, url: &DatabaseUrl) -> Result<(), Failed> {
    let mut unknown = Vec::new();
    for names in names.chunks(NAMES_AT_ONCE) {
        let voices = store.named(names, u32::MAX).await.map_err(at(url))?;
        let names = names.iter().map(String::as_str);
        unknown.extend(names.filter(|name| !voices.iter().any(|voice| voice.is_named(name))));
    }
    match unknown.is_empty() {
        true => Ok(()),
        false => {
            let unknown = unknown.join(", ");
            let message = anyhow!("no row has this id or provider id (--voice): {unknown}");
            Err(Failed::usage(message).with_hint(FIND_IDS))
        }
    }
}

/// The approximate number of voices that a pass looks up, for the progress bar.
async fn meant(store: &Store, scope: &Scope) -> u64 {
    let all = match &scope.which {
        Which::Named(names) => names.len() as u64,
        Which::Due(agenda) => agenda.voices.len() as u64,
        Which::All => store.count(&Selection::all()).await.unwrap_or(0),
    };
    scope.limit.map_or(all, |limit| limit.min(all))
}

/// Whether more voices may be due than fit into one agenda.
fn is_one_of_many(which: &Which) -> bool {
    match which {
        Which::Due(agenda) => {
            let due = agenda.voices.iter().filter(|voice| voice.due_in.is_zero());
            due.count() >= DUE_AT_ONCE as usize
        }
        Which::All | Which::Named(_) => false,
    }
}

/// Without voice-sync's own tables, all voices are due.
async fn due_now(url: &DatabaseUrl, store: &Store) -> Result<Which, Failed> {
    match store.has_own_tables() {
        true => {
            let mut agenda = store
                .agenda(DUE_AT_ONCE, None, None)
                .await
                .map_err(at(url))?;
            let unscheduled = store
                .unscheduled(DUE_AT_ONCE, None)
                .await
                .map_err(at(url))?;
            agenda.begin_with(unscheduled, DUE_AT_ONCE);
            if !agenda.voices.iter().any(|voice| voice.due_in.is_zero()) {
                agenda.voices.clear();
            }
            Ok(Which::Due(agenda))
        }
        false => Ok(Which::All),
    }
}

fn text(report: &Report, output: Output) -> String {
    match output {
        Output::Text => report.to_string(),
        Output::Json => serde_json::to_string(report).expect("a report always serialises"),
    }
}
