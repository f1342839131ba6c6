//! `voice-sync inspect`.

mod text;

use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{FIND_IDS, LOOKUP_TIMEOUT, Options, Output, at, in_time, open, print};
use crate::core::exit::{Exit, Failed};
use crate::core::format::{in_line, span};
use crate::core::judge::{Grounds, Judgement, judge};
use crate::core::lookup::Lookup;
use crate::core::missing::CONFIRMATIONS;
use crate::core::transition::{Seen, Target};
use crate::core::verdict::{Rules, Stage};
use crate::core::voice::{ProviderVoiceId, Voice};
use crate::provider::{Provider, RequestDeadline};
use crate::store::{Access, DatabaseUrl, EventFilter, EventRecord, RowState, Store, VoiceRecord};

/// Show everything about one voice: its row, voice-sync's notes, the provider's answer now, the verdict with its rule, and
/// its events. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync inspect 6f1c2b34-5d6e-4f70-8a9b-0c1d2e3f4a5b
  voice-sync inspect 21m00Tcm4TlvDq8ikWAM --output json")]
pub(super) struct Inspect {
    /// The voice, by row or provider id. `voice-sync list` shows ids.
    #[arg(value_name = "ID")]
    id: String,

    /// Send no request to the provider.
    #[arg(long)]
    offline: bool,
}

/// The maximum number of rows with one provider id, and of events of one voice, that are shown.
const ROWS: u32 = 10;
const EVENTS: u32 = 20;

/// The result of looking a voice up.
enum Answer {
    NotAsked(String),
    Found(Box<Voice>),
    Missing,
    None {
        says: String,
        /// The exit code of the command.
        exit: Exit,
    },
}

/// What a pass would do with the voice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Completed,
    Failed,
    Processing,
    Missing,
    SetAside,
    /// There is no verdict.
    None,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Processing => "processing",
            Self::Missing => "missing",
            Self::SetAside => "set_aside",
            Self::None => "none",
        }
    }
}

/// A verdict for people, with its rule.
struct Verdict {
    outcome: Outcome,
    says: String,
    rule: String,
}

impl Verdict {
    fn none(says: &str, rule: &str) -> Self {
        Self {
            outcome: Outcome::None,
            says: format!("none: {says}"),
            rule: rule.to_owned(),
        }
    }
}

/// Everything that is known about one row.
struct Inspected {
    voice: VoiceRecord,
    answer: Answer,
    verdict: Verdict,
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
            return Err(Failed::usage(message).with_hint(FIND_IDS));
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
        let exits = all.iter().map(|inspected| match &inspected.answer {
            Answer::None { exit, .. } => *exit,
            Answer::NotAsked(_) | Answer::Found(_) | Answer::Missing => Exit::Success,
        });
        Ok(exits.max().unwrap_or(Exit::Success))
    }
}

/// Sends a single lookup, because only its answer is a verdict. Sends nothing while passes must not send requests
/// either.
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
                "the circuit breaker is open, or a cooldown is active, for another {}",
                span(left)
            )));
        }
    }
    Ok(look_up(provider, id).await)
}

async fn look_up(provider: &Provider, id: ProviderVoiceId) -> Answer {
    let stop = CancellationToken::new();
    let deadline = RequestDeadline {
        until: tokio::time::Instant::now() + LOOKUP_TIMEOUT,
        stop: &stop,
    };
    let mut lookups = provider
        .look_up(std::slice::from_ref(&id), true, deadline)
        .await;
    let no_answer = |exit, says| Answer::None { says, exit };
    if let Some(reason) = provider.key_refused() {
        return no_answer(Exit::Key, format!("the key is refused: {reason}"));
    }
    match lookups.remove(&id) {
        Some(Lookup::Found { voice, listed: _ }) => Answer::Found(Box::new(voice)),
        Some(Lookup::Missing) => Answer::Missing,
        Some(Lookup::Rejected(reason)) => {
            no_answer(Exit::Success, format!("it rejects the id: {reason}"))
        }
        Some(Lookup::Unanswerable(error)) => no_answer(
            Exit::Success,
            format!(
                "{error}; the provider answers other requests, so the reason is probably this voice"
            ),
        ),
        Some(Lookup::Unavailable(trouble)) => no_answer(Exit::Temporary, trouble.to_string()),
        None => no_answer(Exit::Temporary, "not asked".to_owned()),
    }
}

/// What a pass would do now, and why.
fn verdict(
    voice: &VoiceRecord,
    answer: &Answer,
    rules: &Rules,
    missing_after: Duration,
    preview_room: Option<usize>,
) -> Verdict {
    match voice.state {
        RowState::Processing => {}
        RowState::Completed | RowState::Failed => {
            let status = in_line(&voice.status);
            let why = "voice-sync never touches rows that are not in processing; `voice-sync retry` puts failed ones back";
            return Verdict::none(&format!("the row is {status}"), why);
        }
        RowState::Other => {
            let why = "voice-sync never touches rows that are not in processing; --status-values sets which value means it";
            return Verdict::none("the status is one of the application's own", why);
        }
    }
    let lookup = match answer {
        Answer::Found(found) => Lookup::Found {
            voice: Voice::clone(found),
            listed: false,
        },
        Answer::Missing => Lookup::Missing,
        Answer::NotAsked(_) | Answer::None { .. } => {
            return Verdict::none("there is no answer", "an error is never a verdict");
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
    in_words(judgement, voice, missing_after)
}

/// A judgement as text, and its rule.
fn in_words(judgement: Judgement, voice: &VoiceRecord, missing_after: Duration) -> Verdict {
    let rule = match &judgement {
        Judgement::Moves(_, rule) => Some(rule),
        Judgement::Stays(_, rule) => rule.as_ref(),
    };
    let rule = rule.map(ToString::to_string).unwrap_or_default();
    let (outcome, says) = match judgement {
        Judgement::Moves(Target::Completed { preview_url }, _) => (
            Outcome::Completed,
            match preview_url {
                Some(_) => "completed".to_owned(),
                None => "completed, without a preview".to_owned(),
            },
        ),
        Judgement::Moves(Target::Failed { reason }, _) => {
            (Outcome::Failed, format!("failed: {}", in_line(&reason)))
        }
        Judgement::Stays(Seen::Processing { stage, kind: _ }, _) => (
            Outcome::Processing,
            match stage {
                Stage::Preparing => "still processing: the provider is preparing it",
                Stage::Training => "still processing: in training",
                Stage::WaitingForOwner => {
                    "still processing: its owner must verify it or start its training"
                }
            }
            .to_owned(),
        ),
        Judgement::Stays(Seen::Missing, _) => {
            let notes = voice.notes_about_it();
            let times = notes.map_or(0, |notes| notes.missing_count);
            let rule = format!(
                "it fails after {CONFIRMATIONS} lookups over {} that do not find it, if other voices were found in between; so far: {times}",
                span(missing_after)
            );
            return Verdict {
                outcome: Outcome::Missing,
                says: "still processing: missing".to_owned(),
                rule,
            };
        }
        Judgement::Stays(Seen::SetAside(why), _) => {
            (Outcome::SetAside, format!("set aside: {why}"))
        }
        Judgement::Stays(
            Seen::Unanswerable { .. }
            | Seen::Suspected(_)
            | Seen::Unavailable(_)
            | Seen::Superseded,
            _,
        ) => (Outcome::Processing, "still processing".to_owned()),
    };
    Verdict {
        outcome,
        says,
        rule,
    }
}
