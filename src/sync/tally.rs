//! The counts of a pass, and what it learns from the answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::batch::Batch;
use super::segments::Place;
use crate::core::exit::Exit;
use crate::core::format::number_of;
use crate::core::lookup::{Lookup, Unavailable, UnavailableKind};
use crate::core::missing::MassAbsenceGuard;
use crate::core::quantiles::Quantiles;
use crate::core::report::{Counts, Obstacle, Part, StopReason};
use crate::core::transition::{Claimed, Note, Seen, SetAside, Target, Transition};
use crate::core::voice::{Position, ProviderVoiceId, RowId, Voice};
use crate::provider::lookup::Step;
use crate::store::{Applied, LeaseId, Page, StoreError};

/// If single lookups find this many voices of a kind, and the list returns none, the kind is looked up one by one.
const UNLISTED_AFTER: u64 = 3;
/// If this many voices cannot be looked up, and none can, it is an outage. The same holds for rows that the database
/// refuses to change.
const OUTAGE_AFTER: usize = 10;
/// If a pass makes more transitions, further ones are logged at debug.
const TRANSITIONS_LOGGED: u64 = 20;
/// The maximum number of voices whose notes are kept back.
const MOST_UNDECIDED: usize = 100;
/// The maximum number of kinds with completion times of their own. The provider has five or six.
const MOST_KINDS: usize = 20;

#[derive(Default)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    pub(super) guard: MassAbsenceGuard,
    pub(super) stop_reason: Option<StopReason>,
    /// How long the voices that this pass completes had been in processing.
    pub(super) completion_times: Quantiles,
    /// The same by kind, for a limited number of kinds.
    pub(super) completion_times_by_kind: BTreeMap<String, Quantiles>,
    /// Why events could not be published.
    pub(super) bus_error: Option<String>,
    /// Whether there was an answer about any voice.
    pub(super) any_answered: bool,
    /// Notes about voices that could not be looked up before there was any answer: it may be an outage.
    undecided: Vec<Note>,
    /// The leases of these voices, held until the notes are written.
    undecided_leases: Vec<Arc<LeaseId>>,
    /// Voices that failed because they were missing.
    pub(super) failed_missing: u64,
    /// Whether any row was changed, or had been changed by the application.
    any_applied: bool,
    /// The number of rows that the database refused to change, and the first reason.
    refused: (usize, Option<(Exit, String)>),
    /// Voices that are newly unanswerable, by kind of error, with one example each.
    unanswerable: HashMap<UnavailableKind, (u64, String)>,
    errors: HashMap<UnavailableKind, (u64, String)>,
    /// Voices that were set aside, by kind of reason, with one example each and its reason.
    set_aside: BTreeMap<&'static str, (u64, RowId, String)>,
    set_aside_before: u64,
    unknown_values: HashSet<String>,
    /// The first batch with voices that were not looked up. The place is just before these voices.
    first_not_asked: Option<Place>,
    /// For each kind of voice: how many the list returned, and how many only a single lookup found.
    shown: HashMap<String, (u64, u64)>,
}

impl Tally {
    /// Counts an answer about a voice, from the list or a single lookup. Returns the number of its values that this
    /// version does not know.
    pub(super) fn found(&mut self, voice: &Voice, listed: bool, asked_list: bool) -> u64 {
        self.any_answered = true;
        let mut unknown = 0;
        for value in voice.unknown_values() {
            unknown += 1;
            if self.unknown_values.insert(value.to_string()) {
                info!(%value, "unknown value in an answer of the provider; a voice whose verdict depends on it stays in processing");
            }
        }
        if asked_list {
            let (by_list, singly) = self.shown.entry(voice.kind().to_owned()).or_default();
            match listed {
                true => *by_list += 1,
                false => *singly += 1,
            }
        }
        unknown
    }

    /// Records how long a voice of this kind had been in processing before it completed.
    pub(super) fn completes_after(&mut self, kind: &str, age: Duration) {
        self.completion_times.add(age);
        let by_kind = &mut self.completion_times_by_kind;
        if by_kind.len() < MOST_KINDS || by_kind.contains_key(kind) {
            by_kind.entry(kind.to_owned()).or_default().add(age);
        }
    }

    /// Records where in a batch the lookups stopped, because time was over or the provider was down. The next pass
    /// begins there; otherwise later rows would never be looked up. Voices that were claimed by name do not count: the
    /// next pass reaches their rows anyway.
    pub(super) fn not_asked(&mut self, batch: &Batch, step: &Step) {
        let Some(place) = &batch.place else {
            return;
        };
        let asked = |voice: &Claimed| {
            let id = voice.checked_id().ok();
            let lookup = id.and_then(|id| step.lookups.get(&id));
            !matches!(lookup, Some(Lookup::Unavailable(t)) if t.kind == UnavailableKind::NotAsked)
        };
        let Some(first) = batch.voices.iter().position(|voice| !asked(voice)) else {
            return;
        };
        let preceded_by = match first {
            0 => place.preceded_by.clone(),
            first => Some(batch.voices[first - 1].position.clone()),
        };
        let earliest = self.first_not_asked.as_ref();
        if earliest.is_none_or(|earliest| place.number < earliest.number) {
            self.first_not_asked = Some(Place {
                number: place.number,
                preceded_by,
            });
        }
    }

    /// Where the next pass begins, given the position of the cursor.
    pub(super) fn resume_after(&self, cursor: Option<Position>) -> Option<Position> {
        match &self.first_not_asked {
            Some(place) => place.preceded_by.clone(),
            None => cursor,
        }
    }

    /// The average number of single lookups per voice in this pass; 0 if unknown.
    pub(super) fn singles_a_voice(&self) -> f64 {
        let (by_list, singly) = self
            .shown
            .values()
            .fold((0, 0), |(listed, single), (l, s)| (listed + l, single + s));
        let singly = singly + self.counts.missing;
        singly as f64 / (by_list + singly).max(1) as f64
    }

    /// Kinds of voices that the list never returned and that single lookups repeatedly found.
    pub(super) fn unlisted(&self) -> Vec<String> {
        self.shown
            .iter()
            .filter(|(_, (by_list, singly))| *by_list == 0 && *singly >= UNLISTED_AFTER)
            .map(|(kind, _)| kind.clone())
            .collect()
    }

    /// Counts a voice that could not be looked up while the provider answered other requests. `new` means that this was
    /// not known before. Returns the note about it if the voice is certainly the cause.
    pub(super) fn unanswerable(
        &mut self,
        note: Note,
        lease: Option<Arc<LeaseId>>,
        error: &Unavailable,
        id: &ProviderVoiceId,
        new: bool,
    ) -> Option<Note> {
        if !new {
            self.counts.unanswerable += 1;
            return Some(note);
        }
        let entry = self.unanswerable.entry(error.kind);
        let example = || (0, format!("{id}: {}", error.detail));
        entry.or_insert_with(example).0 += 1;
        if self.any_answered {
            return Some(note);
        }
        if self.undecided.len() < MOST_UNDECIDED {
            self.undecided.push(note);
            self.undecided_leases.extend(lease);
            return None;
        }
        let seen = Seen::Unavailable(error.to_string());
        Some(Note { seen, ..note })
    }

    /// Counts rows whose change the database refused. Returns whether the rows are the cause: they are not if they are
    /// many and the database changed no other row.
    pub(super) fn refused(&mut self, rows: &[(Transition, StoreError)]) -> bool {
        let (all, first) = &mut self.refused;
        *all += rows.len();
        let example = rows.first();
        *first = first
            .take()
            .or_else(|| example.map(|(_, error)| (error.exit(), error.to_string())));
        self.any_applied || *all < OUTAGE_AFTER
    }

    /// The reason to stop if the database refused all of many changes.
    pub(super) fn refuses_all(&self) -> Option<StopReason> {
        let (rows, first) = &self.refused;
        let (exit, error) = first.clone()?;
        (!self.any_applied && *rows >= OUTAGE_AFTER)
            .then(|| StopReason::ChangesRefused(exit, format!("{rows} rows: {error}")))
    }

    /// Whether many voices were looked up one by one and none had an answer.
    pub(super) fn looks_like_an_outage(&self) -> bool {
        !self.any_answered && self.undecided.len() >= OUTAGE_AFTER
    }

    /// Notes that were kept back, with the leases of their voices, once an answer shows that it is not an outage.
    pub(super) fn take_decided(&mut self) -> (Vec<Note>, Vec<Arc<LeaseId>>) {
        match self.any_answered {
            true => (
                std::mem::take(&mut self.undecided),
                std::mem::take(&mut self.undecided_leases),
            ),
            false => Default::default(),
        }
    }

    /// Notes that were kept back because it may be an outage.
    pub(super) fn take_undecided(&mut self) -> Vec<Note> {
        let is_outage = self.looks_like_an_outage();
        let notes = std::mem::take(&mut self.undecided).into_iter();
        let decide = |note: Note| match note.seen {
            Seen::Unanswerable { reason, .. } if is_outage => Note {
                seen: Seen::Unavailable(reason),
                ..note
            },
            Seen::Unanswerable { .. }
            | Seen::Processing { .. }
            | Seen::Missing
            | Seen::SetAside(_)
            | Seen::Suspected(_)
            | Seen::Unavailable(_)
            | Seen::Superseded => note,
        };
        notes.map(decide).collect()
    }

    pub(super) fn unavailable(&mut self, error: &Unavailable, id: &ProviderVoiceId) {
        let entry = self.errors.entry(error.kind);
        entry
            .or_insert_with(|| (0, format!("{id}: {}", error.detail)))
            .0 += 1;
    }

    pub(super) fn set_aside(&mut self, row: &RowId, why: &SetAside) {
        self.counts.set_aside += 1;
        debug!(voice.row = %row, reason = %why, "voice set aside");
        let entry = self.set_aside.entry(why.kind());
        let first = || (0, row.clone(), why.to_string());
        entry.or_insert_with(first).0 += 1;
    }

    /// Counts a claimed page.
    pub(super) fn claimed(&mut self, page: &Page) {
        self.counts.due += page.voices.len() as u64 + page.leased_elsewhere + page.quarantined;
        self.counts.unanswerable += page.quarantined;
        self.counts.leased_elsewhere += page.leased_elsewhere;
        self.set_aside_before += page.set_aside;
    }

    /// Failures that affected voices and events, one of each kind.
    pub(super) fn obstacles(&self) -> Vec<Obstacle> {
        let errors = self
            .errors
            .iter()
            .map(|(kind, (voices, example))| Obstacle {
                part: Part::Provider,
                says: format!(
                    "{} not checked ({kind}), such as {example}",
                    number_of(*voices, "voice", "voices")
                ),
            });
        let bus = self.bus_error.iter().map(|says| Obstacle {
            part: Part::EventBus,
            says: says.clone(),
        });
        let stop_reason = self.stop_reason.as_ref().and_then(StopReason::obstacle);
        stop_reason.into_iter().chain(errors).chain(bus).collect()
    }

    /// Logs one line for each kind of reason for setting voices aside.
    pub(super) fn log_set_aside(&self) {
        for (kind, (voices, example, reason)) in &self.set_aside {
            warn!(
                event = "voices_set_aside", kind, voices, %example, reason,
                "voices set aside; after three times they are skipped for a day; `voice-sync inspect` shows the reason"
            );
        }
    }

    /// Logs one line for each kind of failure.
    pub(super) fn log_errors(&self) {
        if self.set_aside_before > 0 {
            let voices = self.set_aside_before;
            info!(
                voices,
                "these voices were set aside and are skipped for up to a day; `voice-sync retry --set-aside` looks them up again"
            );
        }
        for (kind, (voices, example)) in &self.errors {
            warn!(event = "voices_not_checked", %kind, voices, %example, "voices not checked; they stay in processing and will be retried");
        }
        if self.counts.unanswerable > 0 {
            let voices = self.counts.unanswerable;
            info!(
                voices,
                "unanswerable voices stay in processing and are looked up at growing intervals; see `voice-sync list --unanswerable`"
            );
        }
    }

    /// Logs one line for each kind of error of voices that are newly unanswerable.
    pub(super) fn log_unanswerable(&self) {
        for (kind, (voices, example)) in &self.unanswerable {
            warn!(
                event = "voices_unanswerable", %kind, voices, %example,
                "voices cannot be looked up, while the provider answers other requests; they stay in processing and are looked up one by one"
            );
        }
    }

    /// Counts transitions, and logs those that were made: a voice "is" or "would be" completed or failed.
    pub(super) fn transitions(
        &mut self,
        transitions: &[Transition],
        applied: &Applied,
        verb: &str,
    ) {
        for Transition {
            row,
            provider_id,
            target,
        } in transitions
        {
            if applied.locked.contains(row) {
                continue;
            }
            self.any_applied = true;
            if !applied.moved.contains(row) {
                self.counts.superseded += 1;
                debug!(voice.row = %row, voice.provider_id = %provider_id, "the application changed the row in the meantime; its change stays");
                continue;
            }
            let (event, status, reason) = match target {
                Target::Completed { .. } => {
                    self.counts.completed += 1;
                    ("voice_completed", "completed", None)
                }
                Target::Failed { reason } => {
                    self.counts.failed += 1;
                    ("voice_failed", "failed", Some(reason))
                }
            };
            // The level must be a constant at each place in the code.
            if self.counts.finished() <= TRANSITIONS_LOGGED {
                info!(event, voice.row = %row, voice.provider_id = %provider_id, reason, "voice {verb} {status}");
            } else {
                debug!(event, voice.row = %row, voice.provider_id = %provider_id, reason, "voice {verb} {status}");
            }
        }
        if !applied.locked.is_empty() {
            let voices = applied.locked.len();
            self.counts.locked += voices as u64;
            warn!(
                voices,
                "rows are locked by the application; their voices stay in processing and will be retried"
            );
        }
        self.counts.events_recorded += applied.events.len() as u64;
    }
}
