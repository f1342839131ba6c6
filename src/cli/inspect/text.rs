//! Formats everything that is known about a voice, for people and for programs.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{Answer, Inspected, Verdict};
use crate::cli::outbox::publication;
use crate::core::format::{ago, in_line, moment, number_of, span, timestamp, without_query};
use crate::status::HEADING;
use crate::store::{EventRecord, RowState, VoiceRecord};

/// The time of the next lookup, if there will be one, and the same for people.
fn next_lookup(voice: &VoiceRecord, now: DateTime<Utc>) -> (Option<DateTime<Utc>>, String) {
    match voice.state {
        RowState::Processing => {}
        RowState::Completed | RowState::Failed | RowState::Other => {
            return (None, "none: it is not in processing".to_owned());
        }
    }
    if let Some(until) = voice.set_aside_until(now) {
        let says = format!("{}: until then it is set aside", ago(until, now));
        return (Some(until), says);
    }
    let later = |time: Option<DateTime<Utc>>| time.filter(|time| *time > now);
    let notes = voice.notes_about_it();
    let lease = later(voice.lease_until);
    let due = later(notes.and_then(|notes| notes.next_due));
    let says = match (lease, due) {
        (Some(lease), _) => format!("under way; its lease ends {}", ago(lease, now)),
        (None, Some(due)) if notes.is_some_and(|notes| notes.unanswered > 1) => {
            format!(
                "{}: until then it is quarantined, because it cannot be looked up",
                ago(due, now)
            )
        }
        (None, Some(due)) => format!("{} by a daemon, or by the next `sync-once`", ago(due, now)),
        (None, None) => "now, by the next pass".to_owned(),
    };
    (lease.or(due).or(Some(now)), says)
}

impl Inspected {
    pub(super) fn json(&self) -> Value {
        let Self {
            voice,
            answer,
            verdict:
                Verdict {
                    outcome,
                    says,
                    rule,
                },
            events,
        } = self;
        let provider = match answer {
            Answer::NotAsked(reason) => json!({"not_asked": reason}),
            Answer::Found(found) => json!({"found": found}),
            Answer::Missing => json!({"missing": true}),
            Answer::None { says, .. } => json!({"trouble": says}),
        };
        let (next, when) = next_lookup(voice, Utc::now());
        json!({"row": voice, "provider": provider,
               "verdict": {"outcome": outcome.as_str(), "says": says, "rule": rule},
               "next_lookup": {"at": next.map(timestamp), "says": when}, "events": events})
    }

    pub(super) fn text(&self) -> String {
        let Self {
            voice,
            answer,
            verdict: Verdict { says, rule, .. },
            events,
        } = self;
        let now = Utc::now();
        let mut sheet = Sheet::default();
        sheet.row(voice, now);
        sheet.notes(voice, now);
        sheet.answer(answer);
        sheet.heading("verdict");
        sheet.line(says);
        sheet.line(rule);
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

    /// Adds a line if there is a value.
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
        self.may_say("preview", voice.preview_url.as_deref().map(without_query));
    }

    fn notes(&mut self, voice: &VoiceRecord, now: DateTime<Utc>) {
        let time = |time: DateTime<Utc>| at_and_ago(time, now);
        self.heading("voice-sync's notes");
        match &voice.notes {
            None => self.say("none", match voice.state {
                RowState::Processing => "no pass has looked it up yet",
                RowState::Completed | RowState::Failed | RowState::Other => {
                    "voice-sync keeps notes only about voices in processing and those that it failed"
                }
            }),
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
                        format!("{}, since {since}", times(notes.missing_count)),
                    );
                }
                if notes.unanswered > 0 {
                    let since = notes.unanswered_since.map(time).unwrap_or_default();
                    self.say(
                        "unanswerable",
                        format!("{}, since {since}", times(notes.unanswered)),
                    );
                }
                if notes.strikes > 0 {
                    self.say("strikes", notes.strikes.to_string());
                }
                self.may_say("set aside until", notes.set_aside_until.map(time));
                self.may_say("last error", notes.last_error.as_ref());
                self.may_say("failed", notes.failed_at.map(time));
                self.may_say("failure", notes.failure.as_ref());
                self.say("last pass", notes.run_id.to_string());
            }
        }
        if let Some(nudge) = &voice.nudge {
            let says = nudge.detail.as_ref().map(|says| format!(": {says}"));
            let says = says.unwrap_or_default();
            self.say("nudged", time(nudge.nudged_at));
            self.say("answer to that", format!("{}{says}", nudge.answer));
        }
        self.say("next lookup", next_lookup(voice, now).1);
    }

    fn answer(&mut self, answer: &Answer) {
        self.heading("the provider, now");
        match answer {
            Answer::NotAsked(reason) => self.say("not asked", reason),
            Answer::Missing => self.say("answer", "voice not found"),
            Answer::None { says, .. } => self.say("no answer", says),
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

fn times(number: u32) -> String {
    number_of(number.into(), "time", "times")
}

fn at_and_ago(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} UTC, {}", moment(time), ago(time, now))
}
