//! `voice-sync retry`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{ArgGroup, Args};
use serde_json::json;
use tokio::time::sleep;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::left::{self, Left};
use super::{LOGGED, Options, Output, at, confirm, in_time, open, print};
use crate::core::bisect::split;
use crate::core::exit::{Exit, Failed};
use crate::core::format::{in_line, number_of};
use crate::core::voice::{ProviderVoiceId, RowId};
use crate::store::{
    Access, CommandRun, DatabaseUrl, RowState, Store, StoreError, VoiceFilter, VoiceRecord, Wanted,
};

/// Put failed voices back to processing, and look up again those that are set aside.
///
/// The age of a voice that is put back starts from zero. The next pass looks it up.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["ids", "all_failed", "set_aside"])),
    after_help = "\
Examples:
  voice-sync retry 6f1c2b34-5d6e-4f70-8a9b-0c1d2e3f4a5b
  voice-sync retry --all-failed --dry-run
  voice-sync retry --set-aside")]
pub(super) struct Retry {
    /// These voices, by row or provider id.
    #[arg(value_name = "ID")]
    ids: Vec<String>,

    /// All failed voices that have a provider id.
    #[arg(long)]
    all_failed: bool,

    /// All voices that are set aside.
    #[arg(long)]
    set_aside: bool,

    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,

    /// Do not ask for confirmation. Required without a terminal for --all-failed and --set-aside.
    #[arg(long)]
    yes: bool,
}

/// Voices that are read at once, and given ids that are looked for at once.
const PAGE: u32 = 500;
const IDS: usize = 100;
/// The maximum number of voices that are listed in the output.
const NAMED: usize = 100;

/// What to do with a voice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    PutBack,
    Release,
}

/// What can be done with a voice, or the reason why nothing can.
fn remedy(voice: &VoiceRecord, now: DateTime<Utc>) -> Result<Remedy, &'static str> {
    let id = voice.provider_id.as_deref().unwrap_or_default();
    match voice.state {
        RowState::Failed if ProviderVoiceId::parse(id).is_err() => {
            Err("it has no valid provider id")
        }
        RowState::Failed => Ok(Remedy::PutBack),
        RowState::Processing if voice.set_aside_until(now).is_some() => Ok(Remedy::Release),
        RowState::Processing if voice.unanswered().is_some() => Ok(Remedy::Release),
        RowState::Processing => Err("it is in processing, and the next pass looks it up"),
        RowState::Completed => Err("it is completed"),
        RowState::Other => Err("its status is one of the application's own"),
    }
}

/// What was done, or would be done.
#[derive(Default)]
struct Outcome {
    put_back: Vec<String>,
    released: Vec<String>,
    /// The row and the earlier problem of each of these voices.
    problems: Vec<(String, String)>,
    left: Vec<Left>,
    /// The number of failed voices by their earlier reason.
    reasons: BTreeMap<String, u64>,
}

impl Retry {
    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        let (url, names) = (options.database_url()?, options.names()?);
        let access = match self.dry_run {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        let opening = open(&url, &names, options.auto_migrate, access);
        let store = in_time(&url, opening).await?;
        let run = CommandRun::begin("retry");
        // No confirmation is needed if the user named the voices.
        if !self.dry_run && !self.yes && self.ids.is_empty() {
            self.confirm(&store, &url).await?;
        }
        let mut outcome = Outcome::default();
        let does = (!self.dry_run).then_some(&run);
        let done = self.retry(&store, &url, does, &mut outcome).await;
        let changed = outcome.put_back.len() + outcome.released.len();
        // Changes that were made before an error are committed and in the ledger, so they are printed.
        if done.is_ok() || changed > 0 {
            print(&self.text(&outcome, run.run_id, options.output))?;
        }
        done?;
        Ok(match outcome.left.is_empty() || self.ids.is_empty() {
            true => Exit::Success,
            // A named voice was left as it is.
            false => Exit::Usage,
        })
    }

    /// Requests a confirmation, with the number of voices.
    async fn confirm(&self, store: &Store, url: &DatabaseUrl) -> Result<(), Failed> {
        let mut outcome = Outcome::default();
        self.retry(store, url, None, &mut outcome).await?;
        if outcome.put_back.is_empty() && outcome.released.is_empty() {
            return Ok(());
        }
        let mut question = Vec::new();
        if !outcome.put_back.is_empty() {
            let reasons = outcome
                .reasons
                .iter()
                .map(|(reason, voices)| format!("{voices} {reason}"));
            let reasons: Vec<_> = reasons.collect();
            let number = number_of(
                outcome.put_back.len() as u64,
                "failed voice",
                "failed voices",
            );
            question.push(format!(
                "put {number} back to processing ({})",
                reasons.join(", ")
            ));
        }
        if !outcome.released.is_empty() {
            let number = outcome.released.len() as u64;
            let voices = number_of(
                number,
                "voice that is set aside",
                "voices that are set aside",
            );
            question.push(format!("let the next pass look up {voices}"));
        }
        let question = question.join(" and ");
        confirm(&format!("This will {question}. Continue?"))
    }

    /// Changes the voices if there is a run, or else only finds out what would be done.
    async fn retry(
        &self,
        store: &Store,
        url: &DatabaseUrl,
        does: Option<&CommandRun>,
        outcome: &mut Outcome,
    ) -> Result<(), Failed> {
        for ids in self.ids.chunks(IDS) {
            let voices = store.named(ids, u32::MAX).await.map_err(at(url))?;
            outcome.left.extend(left::unknown(ids, &voices));
            treat(store, url, does, voices, outcome).await?;
        }
        let filter = match (self.all_failed, self.set_aside) {
            (true, _) => VoiceFilter::Failed,
            (false, true) => VoiceFilter::SetAside,
            (false, false) => return Ok(()),
        };
        let mut last = None;
        loop {
            let wanted = Wanted::Listed(filter, last);
            let page = store.records(&wanted, PAGE).await.map_err(at(url))?;
            let Some(voice) = page.last() else {
                return Ok(());
            };
            last = Some(voice.row.clone());
            treat(store, url, does, page, outcome).await?;
        }
    }

    fn text(&self, outcome: &Outcome, run_id: Uuid, output: Output) -> String {
        let Outcome {
            put_back,
            released,
            problems,
            left,
            reasons: _,
        } = outcome;
        let would = if self.dry_run { "would be " } else { "" };
        match output {
            Output::Json => {
                json!({"run_id": run_id, "dry_run": self.dry_run, "put_back": put_back, "released": released,
                       "left": left::as_json(left)})
                .to_string()
            }
            Output::Text => {
                let number = |ids: &[String]| number_of(ids.len() as u64, "voice", "voices");
                let mut did = Vec::new();
                if !self.set_aside {
                    did.push(format!(
                        "{} {would}put back to processing",
                        number(put_back)
                    ));
                }
                if !self.all_failed && (self.set_aside || !released.is_empty()) {
                    did.push(format!(
                        "{} {}",
                        number(released),
                        match self.dry_run {
                            true => "would no longer be set aside",
                            false => "no longer set aside",
                        }
                    ));
                }
                let mut lines = vec![did.join(", ")];
                if self.dry_run {
                    let shown = problems.iter().take(NAMED);
                    lines.extend(shown.map(|(voice, why)| format!("  {}: {why}", in_line(voice))));
                    if problems.len() > NAMED {
                        lines.push(format!("  and {} others", problems.len() - NAMED));
                    }
                }
                let named = left.iter().take(NAMED);
                lines.extend(
                    named.map(|(voice, why)| format!("  {} is unchanged: {why}", in_line(voice))),
                );
                if left.len() > NAMED {
                    lines.push(format!("  and {} others", left.len() - NAMED));
                }
                lines.join("\n")
            }
        }
    }
}

/// Changes the voices of one page, or finds out what would be done.
async fn treat(
    store: &Store,
    url: &DatabaseUrl,
    does: Option<&CommandRun>,
    page: Vec<VoiceRecord>,
    outcome: &mut Outcome,
) -> Result<(), Failed> {
    let now = Utc::now();
    let (mut failed, mut set_aside) = (Vec::new(), Vec::new());
    for voice in page {
        match remedy(&voice, now) {
            Ok(Remedy::PutBack) => failed.push(voice),
            Ok(Remedy::Release) => set_aside.push(voice),
            Err(why) => outcome.left.push((voice.voice_id, why)),
        }
    }
    for voice in &failed {
        let notes = voice.notes_about_it();
        let reason = notes.and_then(|notes| notes.failure.as_deref());
        let reason = in_line(reason.unwrap_or("of unknown reason"));
        *outcome.reasons.entry(reason.clone()).or_default() += 1;
        outcome.problems.push((voice.voice_id.clone(), reason));
    }
    const OVERTAKEN: &str = "it was changed in the meantime, or is locked";
    const REFUSED: &str = "the database refuses the change; see the log";
    let (moved, refused) = match does.filter(|_| !failed.is_empty()) {
        Some(run) => {
            let (moved, refused) = put_back(store, run, &failed).await.map_err(at(url))?;
            (Some(moved), refused)
        }
        None => (None, HashSet::new()),
    };
    for voice in failed {
        match moved
            .as_ref()
            .is_none_or(|moved| moved.contains(&voice.row))
        {
            true => {
                if let Some(CommandRun { run_id, .. }) = does {
                    const SAYS: &str = "voice is put back to processing";
                    match outcome.put_back.len() < LOGGED {
                        true => info!(%run_id, voice.row = %voice.row, "{SAYS}"),
                        false => debug!(%run_id, voice.row = %voice.row, "{SAYS}"),
                    }
                }
                outcome.put_back.push(voice.voice_id);
            }
            false if refused.contains(&voice.row) => {
                outcome.left.push((voice.voice_id, REFUSED));
            }
            false => outcome.left.push((voice.voice_id, OVERTAKEN)),
        }
    }
    for voice in &set_aside {
        let problem = voice
            .notes_about_it()
            .and_then(|notes| notes.last_error.as_deref());
        let problem = in_line(problem.unwrap_or_default());
        outcome.problems.push((voice.voice_id.clone(), problem));
    }
    let rows: Vec<&str> = set_aside.iter().map(|voice| voice.row.as_str()).collect();
    let released = match does.filter(|_| !rows.is_empty()) {
        Some(run) => Some(store.release(run, &rows).await.map_err(at(url))?),
        None => None,
    };
    for voice in set_aside {
        match released
            .as_ref()
            .is_none_or(|released| released.contains(&voice.row))
        {
            true => outcome.released.push(voice.voice_id),
            false => {
                warn!(voice.row = %voice.row, "voice was no longer set aside");
                outcome.left.push((voice.voice_id, OVERTAKEN));
            }
        }
    }
    Ok(())
}

/// The maximum number of attempts for rows that were skipped after the database refused others.
const TURNS: u32 = 5;
const BETWEEN_TURNS: Duration = Duration::from_millis(50);

/// Puts voices back in bulk. If the database refuses a bulk, it is split until each refused row is alone. Returns the
/// voices that were put back, and those that were refused.
async fn put_back(
    store: &Store,
    run: &CommandRun,
    voices: &[VoiceRecord],
) -> Result<(HashSet<RowId>, HashSet<RowId>), StoreError> {
    let (mut moved, mut refused) = (HashSet::new(), HashSet::new());
    let mut any_error = false;
    // PostgreSQL reports an error just before it releases the locks of the statement. Locked rows are skipped, so the
    // remaining rows are retried after an error.
    for turn in 0..TURNS {
        let is_left =
            |voice: &&VoiceRecord| !moved.contains(&voice.row) && !refused.contains(&voice.row);
        let left: Vec<_> = voices.iter().filter(is_left).cloned().collect();
        if left.is_empty() || turn > 0 && !any_error {
            break;
        }
        sleep(BETWEEN_TURNS * turn).await;
        let mut bulks = vec![left];
        while let Some(mut bulk) = bulks.pop() {
            match store.put_back(run, &bulk).await {
                Ok(rows) => moved.extend(rows),
                Err(error) if !store.refuses_rows(&error).await? => return Err(error),
                Err(error) => {
                    any_error = true;
                    if bulk.len() > 1 {
                        bulks.extend(split(bulk).requests());
                    } else if let Some(voice) = bulk.pop() {
                        warn!(voice.row = %voice.row, %error, "the database refuses to put the voice back");
                        refused.insert(voice.row);
                    }
                }
            }
        }
    }
    Ok((moved, refused))
}
