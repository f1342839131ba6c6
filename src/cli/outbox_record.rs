//! `voice-sync outbox record`: events of voices that were finished while there was no event bus.

use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::json;

use super::left::{self, Left};
use super::{Options, Output, at, confirm, in_time, open, print};
use crate::core::exit::{Exit, Failed};
use crate::core::format::number_of;
use crate::core::transition::{Target, Transition};
use crate::core::voice::StoredProviderId;
use crate::store::{
    Access, CommandRun, DatabaseUrl, RowState, Store, VoiceFilter, VoiceRecord, Wanted,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync outbox record 6f1c2b34-5d6e-4f70-8a9b-0c1d2e3f4a5b
  voice-sync outbox record --since 2h --dry-run")]
pub(super) struct Record {
    /// These voices, by row or provider id.
    #[arg(value_name = "ID", required_unless_present = "since")]
    ids: Vec<String>,
    /// Voices that were completed or failed within this time.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "ids")]
    since: Option<Duration>,
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation. Required without a terminal for --since.
    #[arg(long)]
    yes: bool,
}

/// Voices that are read at once, and whose events are recorded at once.
const PAGE: u32 = 500;
const HAS_ONE: &str =
    "its event is recorded already; `voice-sync outbox resend` publishes it again";

/// The transition of a finished voice, for its event, or the reason why it has none.
fn transition(voice: &VoiceRecord) -> Result<Transition, &'static str> {
    let target = match voice.state {
        RowState::Completed => Target::Completed { preview_url: None },
        RowState::Failed => Target::Failed {
            reason: String::new(),
        },
        RowState::Processing => return Err("it is in processing"),
        RowState::Other => return Err("its status is one of the application's own"),
    };
    let provider_id = voice.provider_id.as_deref();
    Ok(Transition {
        row: voice.row.clone(),
        provider_id: StoredProviderId::new(provider_id.ok_or("it has no provider id")?),
        target,
    })
}

fn finished_at(voice: &VoiceRecord) -> Option<DateTime<Utc>> {
    match voice.state {
        RowState::Completed => voice.completed_at,
        RowState::Failed => voice.notes_about_it()?.failed_at,
        RowState::Processing | RowState::Other => None,
    }
}

impl Record {
    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        if options.publisher()?.is_none() {
            return Err(Failed::usage(anyhow!(
                "there is no event bus to publish to: set REDIS_URL or REDIS_HOST, without --events none"
            )));
        }
        let (url, names) = (options.database_url()?, options.names()?);
        let opening = open(&url, &names, options.auto_migrate, Access::ReadWrite);
        let store = in_time(&url, opening).await?;
        let run = CommandRun::begin("outbox record");
        let mut left = Vec::new();
        let wanted = self.transitions(&store, &url, &mut left).await?;
        let mut lacking = Vec::new();
        for page in wanted.chunks(PAGE as usize) {
            let without = store.without_event(page).await.map_err(at(&url))?;
            let has_one = |it: &&Transition| !without.iter().any(|other| other.row == it.row);
            if !self.ids.is_empty() {
                let others = page.iter().filter(has_one);
                left.extend(others.map(|it| (it.row.to_string(), HAS_ONE)));
            }
            lacking.extend(without);
        }
        if self.since.is_some() && !self.dry_run && !self.yes && !lacking.is_empty() {
            let number = number_of(lacking.len() as u64, "event", "events");
            confirm(&format!(
                "This will record {number}, which the next pass publishes. Continue?"
            ))?;
        }
        let mut events = 0;
        if self.dry_run {
            events = lacking.len() as u64;
        } else {
            for page in lacking.chunks(PAGE as usize) {
                // The count includes the earlier pages of this command.
                events = store.record_events(&run, page).await.map_err(at(&url))?;
            }
        }
        let number = number_of(events, "event", "events");
        print(&match (options.output, self.dry_run) {
            (Output::Json, dry_run) => {
                json!({"run_id": run.run_id, "dry_run": dry_run, "recorded": events, "left": left::as_json(&left)})
                    .to_string()
            }
            (Output::Text, true) => left::with_left(format!("{number} would be recorded"), &left),
            (Output::Text, false) => {
                left::with_left(format!("{number} recorded, to be published by the next pass"), &left)
            }
        })?;
        Ok(match left.is_empty() {
            true => Exit::Success,
            // A named voice got no event.
            false => Exit::Usage,
        })
    }

    async fn transitions(
        &self,
        store: &Store,
        url: &DatabaseUrl,
        left: &mut Vec<Left>,
    ) -> Result<Vec<Transition>, Failed> {
        let mut transitions = Vec::new();
        for ids in self.ids.chunks(PAGE as usize) {
            let voices = store.named(ids, u32::MAX).await.map_err(at(url))?;
            left.extend(left::unknown(ids, &voices));
            for voice in voices {
                match transition(&voice) {
                    Ok(transition) => transitions.push(transition),
                    Err(why) => left.push((voice.voice_id, why)),
                }
            }
        }
        let Some(since) = self.since else {
            return Ok(transitions);
        };
        let since = Utc::now() - since;
        for filter in [VoiceFilter::Completed, VoiceFilter::Failed] {
            let mut last = None;
            loop {
                let wanted = Wanted::Listed(filter, last);
                let page = store.records(&wanted, PAGE).await.map_err(at(url))?;
                let Some(voice) = page.last() else {
                    break;
                };
                last = Some(voice.row.clone());
                let recent =
                    |voice: &&VoiceRecord| finished_at(voice).is_some_and(|at| at >= since);
                transitions.extend(page.iter().filter(recent).flat_map(transition));
            }
        }
        Ok(transitions)
    }
}
