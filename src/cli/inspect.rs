//! `voice-sync inspect`.

use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::outbox::publication;
use super::{Options, Output, PATIENCE, at, in_time, open, print};
use crate::exit::{Exit, Failed};
use crate::missing::CONFIRMATIONS;
use crate::provider::lookup::Lookup;
use crate::provider::{Patience, Provider};
use crate::status::HEADING;
use crate::store::{
    Access, DatabaseUrl, EventFilter, EventRecord, Notes, RowState, Store, VoiceRecord,
};
use crate::verdict::{Rules, Stage, Verdict, judge_by_rule, storable};
use crate::voice::{ProviderVoiceId, Voice};
use crate::words::{ago, in_line, moment, span};

/// Show everything that is known of a voice: its row, voice-sync's notes, what the provider says now, what that
/// means and by which rule, and its events. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync inspect 6f1c2b34-5d6e-4f70-8a9b-0c1d2e3f4a5b
  voice-sync inspect 21m00Tcm4TlvDq8ikWAM --output json")]
pub(super) struct Inspect {
    /// The voice, by row or provider id.
    #[arg(value_name = "ID")]
    id: String,

    /// Do not ask the provider.
    #[arg(long)]
    offline: bool,
}

/// Rows that may have one provider id, and events of one voice, which are shown.
const ROWS: u32 = 10;
const EVENTS: u32 = 20;

/// What asking the provider came to.
enum Answer {
    NotAsked(String),
    Found(Box<Voice>),
    Missing,
    None(String),
}

/// What is known of one row.
struct Inspected {
    voice: VoiceRecord,
    answer: Answer,
    /// What the answer means, and why.
    verdict: [String; 2],
    events: Vec<EventRecord>,
}

impl Inspect {
    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        let (url, table, rules) = (options.database_url()?, options.names()?, options.rules());
        let opening = open(&url, &table, options.auto_migrate, Access::ReadOnly);
        let store = in_time(&url, opening).await?;
        let names = [self.id.clone()];
        let voices = store.named(&names, ROWS).await.map_err(at(&url))?;
        if voices.is_empty() {
            let (id, table) = (in_line(&self.id), table.table.quoted());
            let message = anyhow!("no row of {table} has {id} as its id or provider id");
            return Err(Failed {
                exit: Exit::Usage,
                message,
            });
        }
        let mut all = Vec::new();
        for voice in voices {
            let answer = match self.offline {
                true => Answer::NotAsked("--offline".to_owned()),
                false => ask(options, &store, &url, &voice).await?,
            };
            let filter = EventFilter {
                names: vec![voice.voice_id.clone()],
                ..EventFilter::default()
            };
            let events = store.events(&filter, EVENTS).await.map_err(at(&url))?;
            let verdict = verdict(
                &voice,
                &answer,
                &rules,
                options.missing_after,
                store.preview_room(),
            );
            all.push(Inspected {
                voice,
                answer,
                verdict,
                events,
            });
        }
        let shown = match options.output {
            Output::Json => json!(all.iter().map(Inspected::json).collect::<Vec<_>>()).to_string(),
            Output::Text => all
                .iter()
                .map(Inspected::text)
                .collect::<Vec<_>>()
                .join("\n\n"),
        };
        print(&shown)?;
        Ok(Exit::Success)
    }
}

/// Asks singly, as that is the answer which counts, and not where passes may not ask either.
async fn ask(
    options: &Options,
    store: &Store,
    url: &DatabaseUrl,
    voice: &VoiceRecord,
) -> Result<Answer, Failed> {
    let provider = match options.provider() {
        Ok(provider) => provider,
        Err(Failed { exit: _, message }) => return Ok(Answer::NotAsked(format!("{message:#}"))),
    };
    let id = match ProviderVoiceId::parse(voice.provider_id.as_deref().unwrap_or_default()) {
        Ok(id) => id,
        Err(invalid) => return Ok(Answer::NotAsked(invalid.to_string())),
    };
    if store.has_own_tables() {
        let standing = store.standing(provider.account()).await.map_err(at(url))?;
        let left = standing.open_for.max(standing.hold_for);
        if !left.is_zero() {
            return Ok(Answer::NotAsked(format!(
                "it is left in peace for another {}",
                span(left)
            )));
        }
    }
    Ok(look_up(&provider, id).await)
}

async fn look_up(provider: &Provider, id: ProviderVoiceId) -> Answer {
    let stop = CancellationToken::new();
    let patience = Patience {
        until: tokio::time::Instant::now() + PATIENCE,
        stop: &stop,
    };
    let mut lookups = provider
        .look_up(std::slice::from_ref(&id), true, patience)
        .await;
    if let Some(reason) = provider.key_refused() {
        return Answer::None(format!("the key is refused: {reason}"));
    }
    match lookups.remove(&id) {
        Some(Lookup::Found { voice, listed: _ }) => Answer::Found(Box::new(voice)),
        Some(Lookup::Missing) => Answer::Missing,
        Some(Lookup::Rejected(reason)) => Answer::None(format!("it rejects the id: {reason}")),
        Some(Lookup::Unavailable(trouble)) => Answer::None(trouble.to_string()),
        None => Answer::None("not asked".to_owned()),
    }
}

/// What a pass would do now, and why.
fn verdict(
    voice: &VoiceRecord,
    answer: &Answer,
    rules: &Rules,
    missing_after: Duration,
    preview_room: Option<usize>,
) -> [String; 2] {
    match voice.state {
        RowState::Processing => {}
        RowState::Completed | RowState::Failed => {
            let status = in_line(&voice.status);
            let why = "rows that are not in processing are never touched; of a failed one, see `voice-sync retry`";
            return [format!("none: the row is {status}"), why.to_owned()];
        }
        RowState::Other => {
            let why = "rows that are not in processing are never touched; --status-values says which value means it";
            return [
                "none: the status is one of the application's own".to_owned(),
                why.to_owned(),
            ];
        }
    }
    let found = match answer {
        Answer::Found(found) => found,
        Answer::Missing => {
            let times = notes_about_it(voice).map_or(0, |notes| notes.missing_count);
            return [
                "still processing: missing".to_owned(),
                format!(
                    "it fails when passes have not found it {CONFIRMATIONS} times over {}, and found other voices meanwhile; so far: {times}",
                    span(missing_after)
                ),
            ];
        }
        Answer::NotAsked(_) | Answer::None(_) => {
            let why = "only an answer about the voice is a verdict, trouble is none";
            return ["none without an answer".to_owned(), why.to_owned()];
        }
    };
    let (rule, verdict) = judge_by_rule(found, voice.age.unwrap_or_default(), rules);
    let says = match verdict {
        Verdict::Completed {
            preview_url: Some(preview),
        } => match storable(&preview, preview_room) {
            Ok(()) => "completed".to_owned(),
            Err(unstorable) => format!("set aside: {unstorable}"),
        },
        Verdict::Completed { preview_url: None } => "completed, without a preview".to_owned(),
        Verdict::Failed(failure) => format!("failed: {}", in_line(&failure.to_string())),
        Verdict::Processing(Stage::Preparing) => {
            "still processing: the provider prepares it".to_owned()
        }
        Verdict::Processing(Stage::Training) => "still processing: it is being trained".to_owned(),
        Verdict::Processing(Stage::WaitingForOwner) => {
            "still processing: its owner has to verify it, or to start its training".to_owned()
        }
    };
    [says, rule.to_string()]
}

/// Notes, unless they are about an earlier clone.
fn notes_about_it(voice: &VoiceRecord) -> Option<&Notes> {
    voice
        .notes
        .as_ref()
        .filter(|notes| notes.provider_id == voice.provider_id)
}

/// When the next lookup is, if there will be one.
fn next_lookup(voice: &VoiceRecord, now: DateTime<Utc>) -> String {
    let later = |time: Option<DateTime<Utc>>| time.filter(|time| *time > now);
    let notes = notes_about_it(voice);
    match voice.state {
        RowState::Completed | RowState::Failed | RowState::Other => {
            "none: it is not in processing".to_owned()
        }
        RowState::Processing => match notes.map(|notes| {
            (
                later(notes.set_aside_until),
                later(notes.lease_until),
                later(notes.next_due),
            )
        }) {
            Some((Some(until), _, _)) => format!("{}: until then it is set aside", ago(until, now)),
            Some((None, Some(lease), due)) => match due.filter(|due| *due > lease) {
                Some(due) => format!("{}, by a daemon", ago(due, now)),
                None => format!("under way; its lease ends {}", ago(lease, now)),
            },
            Some((None, None, Some(due))) => {
                format!("{} by a daemon, or by the next `sync-once`", ago(due, now))
            }
            Some((None, None, None)) | None => "now, by the next pass".to_owned(),
        },
    }
}

impl Inspected {
    fn json(&self) -> Value {
        let Self {
            voice,
            answer,
            verdict: [says, why],
            events,
        } = self;
        let provider = match answer {
            Answer::NotAsked(reason) => json!({"not_asked": reason}),
            Answer::Found(found) => json!({"found": found}),
            Answer::Missing => json!({"missing": true}),
            Answer::None(trouble) => json!({"trouble": trouble}),
        };
        json!({"row": voice, "provider": provider, "verdict": {"says": says, "rule": why},
               "next_lookup": next_lookup(voice, Utc::now()), "events": events})
    }

    fn text(&self) -> String {
        let Self {
            voice,
            answer,
            verdict: [says, why],
            events,
        } = self;
        let now = Utc::now();
        let at = |time: DateTime<Utc>| format!("{} UTC, {}", moment(time), ago(time, now));
        let mut lines = Vec::new();
        let mut say = |name: &str, value: Option<String>| {
            lines.extend(value.map(|value| format!("  {name:<18} {}", in_line(&value))));
        };
        say("row", Some(voice.voice_id.clone()));
        say("user", voice.user_id.clone());
        say(
            "provider id",
            Some(
                voice
                    .provider_id
                    .clone()
                    .unwrap_or_else(|| "none".to_owned()),
            ),
        );
        say("status", Some(voice.status.clone()));
        say(
            "in processing",
            voice.age.map(|age| format!("for {}", span(age))),
        );
        say("created", voice.created_at.map(at));
        say("completed", voice.completed_at.map(at));
        say("preview", voice.preview_url.clone());
        lines.push(heading("voice-sync's notes"));
        let mut say = |name: &str, value: Option<String>| {
            lines.extend(value.map(|value| format!("  {name:<18} {}", in_line(&value))));
        };
        match &voice.notes {
            None => say(
                "none",
                Some("it was never seen, or is completed".to_owned()),
            ),
            Some(notes) => {
                let is_stale = notes.provider_id != voice.provider_id;
                say(
                    "about",
                    notes
                        .provider_id
                        .clone()
                        .filter(|_| is_stale)
                        .map(|id| format!("{id}, which the row had before")),
                );
                say("first seen", Some(at(notes.first_seen)));
                say("age counts from", notes.restarted_at.map(at));
                say(
                    "last answer",
                    Some(notes.last_asked.map_or("none yet".to_owned(), at)),
                );
                say("kind", notes.kind.clone());
                say(
                    "stage",
                    notes.stage.clone().map(|stage| stage.replace('_', " ")),
                );
                let since = notes.missing_since.map(at).unwrap_or_default();
                say(
                    "not found",
                    (notes.missing_count > 0)
                        .then(|| format!("{} times, since {since}", notes.missing_count)),
                );
                say(
                    "strikes",
                    (notes.strikes > 0).then(|| notes.strikes.to_string()),
                );
                say("set aside until", notes.set_aside_until.map(at));
                say("trouble", notes.trouble.clone());
                say("failed", notes.failed_at.map(at));
                say("failure", notes.failure.clone());
                say("last pass", Some(notes.run_id.to_string()));
            }
        }
        say("next lookup", Some(next_lookup(voice, now)));
        lines.push(heading("the provider, now"));
        let mut say =
            |name: &str, value: &str| lines.push(format!("  {name:<18} {}", in_line(value)));
        match answer {
            Answer::NotAsked(reason) => say("not asked", reason),
            Answer::Missing => say("answer", "it does not know this voice"),
            Answer::None(trouble) => say("no answer", trouble),
            Answer::Found(found) => {
                let fields = json!(found);
                let fields = fields.as_object().into_iter().flatten();
                for (name, value) in fields.filter(|(name, _)| *name != "voice_id") {
                    say(name, value.as_str().unwrap_or(&value.to_string()));
                }
            }
        }
        lines.push(heading("verdict"));
        lines.push(format!("  {}", in_line(says)));
        lines.push(format!("  {why}"));
        lines.push(heading("events"));
        match events.is_empty() {
            true => lines.push("  none".to_owned()),
            false => lines.extend(events.iter().map(|event| {
                format!(
                    "  {} {} of {} UTC: {}",
                    in_line(&event.event_type),
                    event.event_id,
                    moment(event.occurred_at),
                    match event.published_at {
                        Some(_) => format!("published {}", publication(event)),
                        None => publication(event),
                    }
                )
            })),
        }
        format!("{}\n{}", heading("the application's row"), lines.join("\n"))
    }
}

fn heading(text: &str) -> String {
    format!("{HEADING}{text}{HEADING:#}")
}
