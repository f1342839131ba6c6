//! `voice-sync fail`.

use clap::Args;
use serde_json::json;
use tracing::{debug, info};

use super::left::{self, Left};
use super::{LOGGED, Options, Output, at, in_time, open, print};
use crate::core::exit::{Exit, Failed};
use crate::core::format::{in_line, number_of, printable};
use crate::core::transition::{Target, Transition};
use crate::core::voice::StoredProviderId;
use crate::store::{Access, CommandRun, DatabaseUrl, Record, RowState, Store, VoiceRecord};

/// Fail voices in processing that can never be completed.
///
/// The event is recorded with the change, and the next pass publishes it. `voice-sync retry` puts a voice back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync fail 6f1c2b34-5d6e-4f70-8a9b-0c1d2e3f4a5b --reason 'deleted by its owner' --dry-run
  voice-sync fail 21m00Tcm4TlvDq8ikWAM --reason 'deleted by its owner'")]
pub(super) struct Fail {
    /// These voices, by row or provider id.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,

    /// The reason, which `inspect` and `list` show.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,

    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// Ids that one statement looks for, and voices that one statement fails.
const AT_ONCE: usize = 100;

fn reason(text: &str) -> Result<String, String> {
    const MOST: usize = 200;
    let text = printable(text.trim());
    match (1..=MOST).contains(&text.chars().count()) {
        true => Ok(text),
        false => Err(format!("give a text of 1 to {MOST} characters")),
    }
}

#[derive(Default)]
struct Outcome {
    failed: Vec<String>,
    left: Vec<Left>,
}

/// The transition of a voice, or the reason why it cannot be made.
fn transition(voice: &VoiceRecord, reason: &str) -> Result<Transition, &'static str> {
    match (voice.state, &voice.provider_id) {
        (RowState::Processing, Some(id)) => Ok(Transition {
            row: voice.row.clone(),
            provider_id: StoredProviderId::new(id.as_str()),
            target: Target::Failed {
                reason: reason.to_owned(),
            },
        }),
        (RowState::Processing, None) => {
            Err("it has no provider id, so the change cannot be guarded")
        }
        (RowState::Failed, _) => Err("it is failed already"),
        (RowState::Completed, _) => Err("it is completed"),
        (RowState::Other, _) => Err("its status is one of the application's own"),
    }
}

impl Fail {
    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        let (url, names) = (options.database_url()?, options.names()?);
        let record = match options.publisher()? {
            Some(_) => Record::ForAnyone,
            None => Record::Nothing,
        };
        let access = match self.dry_run {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        let opening = open(&url, &names, options.auto_migrate, access);
        let store = in_time(&url, opening).await?;
        let run = CommandRun::begin("fail");
        let mut outcome = Outcome::default();
        let mut done = Ok(());
        for ids in self.ids.chunks(AT_ONCE) {
            done = self
                .fail(&store, &url, ids, &run, record, &mut outcome)
                .await;
            if done.is_err() {
                break;
            }
        }
        // Changes that were made before an error are committed and in the ledger, so they are printed.
        if done.is_ok() || !outcome.failed.is_empty() {
            print(&self.text(&outcome, &run, options.output))?;
        }
        done?;
        Ok(match outcome.left.is_empty() {
            true => Exit::Success,
            false => Exit::Usage,
        })
    }

    async fn fail(
        &self,
        store: &Store,
        url: &DatabaseUrl,
        ids: &[String],
        run: &CommandRun,
        record: Record,
        outcome: &mut Outcome,
    ) -> Result<(), Failed> {
        let voices = store.named(ids, u32::MAX).await.map_err(at(url))?;
        outcome.left.extend(left::unknown(ids, &voices));
        let mut transitions = Vec::new();
        for voice in voices {
            match transition(&voice, &self.reason) {
                Ok(transition) => transitions.push((voice.voice_id, transition)),
                Err(why) => outcome.left.push((voice.voice_id, why)),
            }
        }
        let (names, transitions): (Vec<_>, Vec<_>) = transitions.into_iter().unzip();
        let failed = match self.dry_run {
            true => transitions.iter().map(|t| t.row.clone()).collect(),
            false => store
                .fail(run, &transitions, record)
                .await
                .map_err(at(url))?,
        };
        for (
            name,
            Transition {
                row, provider_id, ..
            },
        ) in names.into_iter().zip(&transitions)
        {
            if !failed.contains(row) {
                outcome
                    .left
                    .push((name, "the application changed it meanwhile"));
                continue;
            }
            if !self.dry_run {
                let run_id = run.run_id;
                const SAYS: &str = "voice is failed by hand";
                match outcome.failed.len() < LOGGED {
                    true => {
                        info!(%run_id, voice.row = %row, voice.provider_id = %provider_id, reason = self.reason, "{SAYS}");
                    }
                    false => debug!(%run_id, voice.row = %row, "{SAYS}"),
                }
            }
            outcome.failed.push(name);
        }
        Ok(())
    }

    fn text(&self, outcome: &Outcome, run: &CommandRun, output: Output) -> String {
        let Outcome { failed, left } = outcome;
        match output {
            Output::Json => json!({"run_id": run.run_id, "dry_run": self.dry_run, "failed": failed,
                       "left": left::as_json(left)})
            .to_string(),
            Output::Text => {
                let would = if self.dry_run { "would be " } else { "" };
                let number = number_of(failed.len() as u64, "voice", "voices");
                let mut lines = vec![format!("{number} {would}marked as failed: {}", self.reason)];
                let left = left.iter();
                lines
                    .extend(left.map(|(row, why)| format!("  {} not failed: {why}", in_line(row))));
                lines.join("\n")
            }
        }
    }
}
