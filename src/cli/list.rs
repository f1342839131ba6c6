//! `voice-sync list`.

use std::time::Duration;

use chrono::Utc;
use clap::{ArgGroup, Args, ValueEnum};

use super::output::show_part;
use super::{Options, Output, at, in_time, open, unwritten};
use crate::core::exit::{Exit, Failed};
use crate::core::format::{in_line, number_of, span};
use crate::store::{Access, RowState, VoiceFilter, VoiceRecord, Wanted};

/// List voices, page by page: with --output json as one array.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").args(["status", "missing", "set_aside", "unanswerable", "failed"])),
    after_help = "\
Examples:
  voice-sync list
  voice-sync list --older-than 6h
  voice-sync list --failed --output json | jq -r '.[].row_id'
  voice-sync list --set-aside")]
pub(super) struct List {
    /// Voices with this status.
    #[arg(long, value_enum, default_value_t)]
    status: Status,

    /// Voices in processing that the provider did not find at the last lookup.
    #[arg(long)]
    missing: bool,

    /// Voices that are set aside.
    #[arg(long)]
    set_aside: bool,

    /// Voices that cannot be looked up while the provider answers other requests.
    #[arg(long)]
    unanswerable: bool,

    /// The same as --status failed.
    #[arg(long)]
    failed: bool,

    /// Only voices whose rows are older.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Status {
    #[default]
    Processing,
    Completed,
    Failed,
}

/// Voices that are read and printed at once.
const PAGE: u32 = 500;

impl List {
    fn filter(&self) -> VoiceFilter {
        match self {
            Self { missing: true, .. } => VoiceFilter::Missing,
            Self {
                set_aside: true, ..
            } => VoiceFilter::SetAside,
            Self {
                unanswerable: true, ..
            } => VoiceFilter::Unanswerable,
            Self { failed: true, .. } => VoiceFilter::Failed,
            Self { status, .. } => match status {
                Status::Processing => VoiceFilter::Processing,
                Status::Completed => VoiceFilter::Completed,
                Status::Failed => VoiceFilter::Failed,
            },
        }
    }

    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        let (url, names) = (options.database_url()?, options.names()?);
        let opening = open(&url, &names, options.auto_migrate, Access::ReadOnly);
        let store = in_time(&url, opening).await?;
        let (filter, mut last, mut any) = (self.filter(), None, false);
        if options.output == Output::Text && !show_part(&header()).map_err(unwritten)? {
            return Ok(Exit::Success);
        }
        loop {
            let wanted = Wanted::Listed(filter, last.take());
            let page = store.records(&wanted, PAGE).await.map_err(at(&url))?;
            last = page.last().map(|voice| voice.row.clone());
            let is_last = last.is_none();
            let is_old_enough = |voice: &&VoiceRecord| {
                self.older_than
                    .is_none_or(|least| age(voice).is_some_and(|age| age > least))
            };
            let shown = page.iter().filter(is_old_enough);
            let mut text = String::new();
            for voice in shown {
                match options.output {
                    Output::Text => text.push_str(&(line(voice) + "\n")),
                    Output::Json => {
                        text.push_str(if any { ",\n" } else { "[" });
                        text.push_str(&serde_json::to_string(voice).expect("a voice serialises"));
                    }
                }
                any = true;
            }
            if is_last && options.output == Output::Json {
                text.push_str(if any { "]\n" } else { "[]\n" });
            }
            if !show_part(&text).map_err(unwritten)? || is_last {
                return Ok(Exit::Success);
            }
        }
    }
}

/// The time in processing, or else the time since the row was created.
fn age(voice: &VoiceRecord) -> Option<Duration> {
    let created = || (Utc::now() - voice.created_at?).to_std().ok();
    voice.age.or_else(created)
}

fn header() -> String {
    columns(["ROW ID", "PROVIDER ID", "STATUS", "AGE", "NOTE"]) + "\n"
}

fn line(voice: &VoiceRecord) -> String {
    let age = age(voice).map_or("-".to_owned(), span);
    columns([
        &in_line(&voice.voice_id),
        &in_line(voice.provider_id.as_deref().unwrap_or("-")),
        &in_line(&voice.status),
        &age,
        &in_line(&remark(voice)),
    ])
}

fn columns([row, provider_id, status, age, note]: [&str; 5]) -> String {
    let line = format!("{row:<36}  {provider_id:<22}  {status:<10}  {age:>12}  {note}");
    line.trim_end().to_owned()
}

/// The most important note about a voice.
fn remark(voice: &VoiceRecord) -> String {
    let Some(notes) = voice.notes_about_it() else {
        return String::new();
    };
    let problem = notes.last_error.as_deref().unwrap_or_default();
    let times = |count: u32| number_of(count.into(), "time", "times");
    match voice.state {
        RowState::Failed => notes.failure.clone().unwrap_or_default(),
        RowState::Processing if notes.set_aside_until.is_some() => format!("set aside: {problem}"),
        RowState::Processing if notes.unanswered > 0 => {
            format!("no answer, {}: {problem}", times(notes.unanswered))
        }
        RowState::Processing if notes.missing_count > 0 => {
            format!("not found, {}", times(notes.missing_count))
        }
        RowState::Processing if notes.strikes > 0 => {
            format!("refused, {}: {problem}", times(notes.strikes))
        }
        RowState::Processing => notes.stage.clone().unwrap_or_default().replace('_', " "),
        RowState::Completed | RowState::Other => String::new(),
    }
}
