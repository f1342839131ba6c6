//! `voice-sync inspect`.

use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::outbox::publication;
use super::{COMMAND_TIMEOUT, Options, Output, at, in_time, open, print};
use crate::core::exit::{Exit, Failed};
use crate::core::format::{ago, in_line, moment, span};
use crate::core::judge::{Grounds, Judgement, judge};
use crate::core::lookup::Lookup;
use crate::core::missing::CONFIRMATIONS;
use crate::core::transition::{Seen, Target};
use crate::core::verdict::{Rules, Stage};
use crate::core::voice::{ProviderVoiceId, Voice};
use crate::provider::{Provider, RequestDeadline};
use crate::status::HEADING;
use crate::store::{Access, DatabaseUrl, EventFilter, EventRecord, RowState, Store, VoiceRecord};

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
        let provider = (!self.offline).then(|| options.provider());
        let mut all = Vec::new();
        for voice in voices {
            let answer = match &provider {
                None => Answer::NotAsked("--offline".to_owned()),
                Some(provider) => ask(provider.as_ref(), &store, &url, &voice).await?,
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
    provider: Result<&Provider, &Failed>,
    store: &Store,
    url: &DatabaseUrl,
    voice: &VoiceRecord,
) -> Result<Answer, Failed> {
    let provider = match provider {
        Ok(provider) => provider,
        Err(failed) => return Ok(Answer::NotAsked(failed.to_string())),
    };
    let id = match ProviderVoiceId::parse(voice.provider_id.as_deref().unwrap_or_default()) {
        Ok(id) => id,
        Err(invalid) => return Ok(Answer::NotAsked(invalid.to_string())),
    };
    if store.has_own_tables() {
        let state = store
            .provider_state(provider.account())
            .await
            .map_err(at(url))?;
        let left = state.open_for.max(state.cooldown);
        if !left.is_zero() {
            return Ok(Answer::NotAsked(format!(
                "the circuit breaker is open, or a cooldown lasts, for another {}",
                span(left)
            )));
        }
    }
    Ok(look_up(provider, id).await)
}

async fn look_up(provider: &Provider, id: ProviderVoiceId) -> Answer {
    let stop = CancellationToken::new();
    let deadline = RequestDeadline {
        until: tokio::time::Instant::now() + COMMAND_TIMEOUT,
        stop: &stop,
    };
    let mut lookups = provider
        .look_up(std::slice::from_ref(&id), true, deadline)
        .await;
    if let Some(reason) = provider.key_refused() {
        return Answer::None(format!("the key is refused: {reason}"));
    }
    match lookups.remove(&id) {
        Some(Lookup::Found { voice, listed: _ }) => Answer::Found(Box::new(voice)),
        Some(Lookup::Missing) => Answer::Missing,
        Some(Lookup::Rejected(reason)) => Answer::None(format!("it rejects the id: {reason}")),
        Some(Lookup::Unanswerable(trouble)) => Answer::None(format!(
            "{trouble}; it answers other requests, so the reason may lie in this voice"
        )),
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
    let lookup = match answer {
        Answer::Found(found) => Lookup::Found {
            voice: Voice::clone(found),
            listed: false,
        },
        Answer::Missing => Lookup::Missing,
        Answer::NotAsked(_) | Answer::None(_) => {
            let why = "only an answer about the voice is a verdict, trouble is none";
            return ["none without an answer".to_owned(), why.to_owned()];
        }
    };
    let grounds = Grounds {
        rules,
        preview_room,
        held: Duration::ZERO,
        found_any: true,
        is_suspect: false,
    };
    let judgement = judge(&voice.as_claimed(), Some(&lookup), grounds);
    let rule = match &judgement {
        Judgement::Moves(_, rule) => Some(rule),
        Judgement::Stays(_, rule) => rule.as_ref(),
    };
    let rule = rule.map(ToString::to_string);
    let says = match judgement {
        Judgement::Moves(
            Target::Completed {
                preview_url: Some(_),
            },
            _,
        ) => "completed".to_owned(),
        Judgement::Moves(Target::Completed { preview_url: None }, _) => {
            "completed, without a preview".to_owned()
        }
        Judgement::Moves(Target::Failed { reason }, _) => format!("failed: {}", in_line(&reason)),
        Judgement::Stays(Seen::Processing { stage, kind: _ }, _) => match stage {
            Stage::Preparing => "still processing: the provider prepares it".to_owned(),
            Stage::Training => "still processing: it is being trained".to_owned(),
            Stage::WaitingForOwner => {
                "still processing: its owner has to verify it, or to start its training".to_owned()
            }
        },
        Judgement::Stays(Seen::Missing, _) => {
            let times = voice
                .notes_about_it()
                .map_or(0, |notes| notes.missing_count);
            let why = format!(
                "it fails when passes have not found it {CONFIRMATIONS} times over {}, and found other voices meanwhile; so far: {times}",
                span(missing_after)
            );
            return ["still processing: missing".to_owned(), why];
        }
        Judgement::Stays(Seen::SetAside(why), _) => format!("set aside: {why}"),
        Judgement::Stays(
            Seen::Unanswerable { .. }
            | Seen::Suspected(_)
            | Seen::Unavailable(_)
            | Seen::Superseded,
            _,
        ) => "still processing".to_owned(),
    };
    [says, rule.unwrap_or_default()]
}

/// When the next lookup is, if there will be one.
fn next_lookup(voice: &VoiceRecord, now: DateTime<Utc>) -> String {
    match voice.state {
        RowState::Processing => {}
        RowState::Completed | RowState::Failed | RowState::Other => {
            return "none: it is not in processing".to_owned();
        }
    }
    if let Some(until) = voice.set_aside_until(now) {
        return format!("{}: until then it is set aside", ago(until, now));
    }
    let later = |time: Option<DateTime<Utc>>| time.filter(|time| *time > now);
    let notes = voice.notes_about_it();
    let lease = later(voice.lease_until);
    let due = later(notes.and_then(|notes| notes.next_due));
    match (lease, due) {
        (Some(lease), _) => format!("under way; its lease ends {}", ago(lease, now)),
        (None, Some(due)) if notes.is_some_and(|notes| notes.unanswered > 1) => {
            format!(
                "{}: until then it is not asked about, because it cannot be looked up",
                ago(due, now)
            )
        }
        (None, Some(due)) => format!("{} by a daemon, or by the next `sync-once`", ago(due, now)),
        (None, None) => "now, by the next pass".to_owned(),
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
        let mut sheet = Sheet::default();
        sheet.row(voice, now);
        sheet.notes(voice, now);
        sheet.answer(answer);
        sheet.heading("verdict");
        sheet.line(says);
        sheet.line(why);
        sheet.heading("events");
        for event in events {
            sheet.event(event);
        }
        if events.is_empty() {
            sheet.line("none");
        }
        sheet.0.join("\n")
    }
}

/// Lines for people, under headings.
#[derive(Default)]
struct Sheet(Vec<String>);

impl Sheet {
    fn heading(&mut self, text: &str) {
        self.0.push(format!("{HEADING}{text}{HEADING:#}"));
    }

    fn line(&mut self, text: &str) {
        self.0.push(format!("  {}", in_line(text)));
    }

    fn say(&mut self, name: &str, value: impl AsRef<str>) {
        self.line(&format!("{name:<18} {}", value.as_ref()));
    }

    /// Says it, if it is there.
    fn may_say(&mut self, name: &str, value: Option<impl AsRef<str>>) {
        if let Some(value) = value {
            self.say(name, value);
        }
    }

    fn row(&mut self, voice: &VoiceRecord, now: DateTime<Utc>) {
        self.heading("the application's row");
        self.say("row", &voice.voice_id);
        self.may_say("user", voice.user_id.as_ref());
        self.say(
            "provider id",
            voice.provider_id.as_deref().unwrap_or("none"),
        );
        self.say("status", &voice.status);
        self.may_say(
            "in processing",
            voice.age.map(|age| format!("for {}", span(age))),
        );
        self.may_say(
            "created",
            voice.created_at.map(|time| at_and_ago(time, now)),
        );
        self.may_say(
            "completed",
            voice.completed_at.map(|time| at_and_ago(time, now)),
        );
        self.may_say("preview", voice.preview_url.as_ref());
    }

    fn notes(&mut self, voice: &VoiceRecord, now: DateTime<Utc>) {
        let time = |time: DateTime<Utc>| at_and_ago(time, now);
        self.heading("voice-sync's notes");
        match &voice.notes {
            None => self.say("none", "it was never seen, or is completed"),
            Some(notes) => {
                let before = notes
                    .provider_id
                    .as_ref()
                    .filter(|_| notes.provider_id != voice.provider_id);
                self.may_say(
                    "about",
                    before.map(|id| format!("{id}, which the row had before")),
                );
                self.say("first seen", time(notes.first_seen));
                self.may_say("age counts from", notes.restarted_at.map(time));
                self.say(
                    "last looked at",
                    notes.last_asked.map_or("none yet".to_owned(), time),
                );
                self.may_say("kind", notes.kind.as_ref());
                self.may_say(
                    "stage",
                    notes.stage.as_ref().map(|stage| stage.replace('_', " ")),
                );
                if notes.missing_count > 0 {
                    let since = notes.missing_since.map(time).unwrap_or_default();
                    self.say(
                        "not found",
                        format!("{} times, since {since}", notes.missing_count),
                    );
                }
                if notes.unanswered > 0 {
                    let since = notes.unanswered_since.map(time).unwrap_or_default();
                    self.say(
                        "unanswerable",
                        format!("{} times, since {since}", notes.unanswered),
                    );
                }
                if notes.strikes > 0 {
                    self.say("strikes", notes.strikes.to_string());
                }
                self.may_say("set aside until", notes.set_aside_until.map(time));
                self.may_say("trouble", notes.trouble.as_ref());
                self.may_say("failed", notes.failed_at.map(time));
                self.may_say("failure", notes.failure.as_ref());
                self.say("last pass", notes.run_id.to_string());
            }
        }
        self.say("next lookup", next_lookup(voice, now));
    }

    fn answer(&mut self, answer: &Answer) {
        self.heading("the provider, now");
        match answer {
            Answer::NotAsked(reason) => self.say("not asked", reason),
            Answer::Missing => self.say("answer", "it does not know this voice"),
            Answer::None(trouble) => self.say("no answer", trouble),
            Answer::Found(found) => {
                let fields = json!(found);
                let fields = fields.as_object().into_iter().flatten();
                for (name, value) in fields.filter(|(name, _)| *name != "voice_id") {
                    self.say(name, value.as_str().unwrap_or(&value.to_string()));
                }
            }
        }
    }

    fn event(&mut self, event: &EventRecord) {
        let published = match event.published_at {
            Some(_) => format!("published {}", publication(event)),
            None => publication(event),
        };
        let (kind, id, time) = (&event.event_type, event.event_id, moment(event.occurred_at));
        self.line(&format!("{kind} {id} of {time} UTC: {published}"));
    }
}

fn at_and_ago(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} UTC, {}", moment(time), ago(time, now))
}
