//! What a pass counts, and what it learns from the answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::batch::Batch;
use super::segments::Place;
use crate::core::exit::Exit;
use crate::core::lookup::{Lookup, Unavailable, UnavailableKind};
use crate::core::missing::MassAbsenceGuard;
use crate::core::quantiles::Quantiles;
use crate::core::report::{Counts, Obstacle, Part, StopReason};
use crate::core::transition::{Claimed, Note, Seen, SetAside, Target, Transition};
use crate::core::voice::{Position, ProviderVoiceId, RowId, Voice};
use crate::provider::lookup::Step;
use crate::store::{Applied, LeaseId, Page, StoreError};

/// Single lookups that must find a kind of voice, and the list never, before it is asked singly.
const UNLISTED_AFTER: u64 = 3;
/// So many voices that cannot be looked up, and none that can, are an outage; likewise, so many rows that the
/// database refuses to change.
const OUTAGE_AFTER: usize = 10;
/// Of more transitions in a pass, each is logged at debug only.
const TRANSITIONS_LOGGED: u64 = 20;
/// Voices of which that is kept in mind.
const MOST_UNDECIDED: usize = 100;
/// Kinds whose completion times are told apart: the provider has five or six.
const MOST_KINDS: usize = 20;

#[derive(Default)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    pub(super) guard: MassAbsenceGuard,
    pub(super) stop_reason: Option<StopReason>,
    /// For how long the voices had been in processing that it completes.
    pub(super) completion_times: Quantiles,
    /// The same by kind, of a few kinds.
    pub(super) completion_times_by_kind: BTreeMap<String, Quantiles>,
    /// Why events could not be published.
    pub(super) bus_trouble: Option<String>,
    /// Whether anything was answered about a voice.
    pub(super) any_answered: bool,
    /// Notes of voices that could not be looked up before anything was answered: it may be an outage.
    undecided: Vec<Note>,
    /// The leases of these voices, which last until then.
    undecided_leases: Vec<Arc<LeaseId>>,
    /// Voices that failed because they were missing.
    pub(super) failed_missing: u64,
    /// Whether any row was changed, or had been changed by the application.
    any_applied: bool,
    /// How many rows the database refused to change, and the first reason.
    refused: (usize, Option<(Exit, String)>),
    /// Voices that were newly found to be unanswerable, and one of them for each kind of trouble.
    unanswerable: HashMap<UnavailableKind, (u64, String)>,
    troubles: HashMap<UnavailableKind, (u64, String)>,
    /// How many voices were set aside for each kind of reason, one of them, and its reason.
    set_aside: BTreeMap<&'static str, (u64, RowId, String)>,
    set_aside_before: u64,
    unknown_values: HashSet<String>,
    /// The first batch with voices that nobody got to ask about; the place is just before them.
    first_not_asked: Option<Place>,
    /// For each kind of voice: shown by the list, found only by a single lookup.
    shown: HashMap<String, (u64, u64)>,
}

impl Tally {
    /// Notes an answer about a voice, and whether the list or a single lookup brought it. Returns
    /// how many values it has that this version does not know.
    pub(super) fn found(&mut self, voice: &Voice, listed: bool, asked_list: bool) -> u64 {
        self.any_answered = true;
        let mut unknown = 0;
        for value in voice.unknown_values() {
            unknown += 1;
            if self.unknown_values.insert(value.to_string()) {
                info!(%value, "unknown value in an answer of the provider; the voice stays in processing where it matters");
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

    /// Notes for how long a voice of this kind had been in processing that is completed.
    pub(super) fn completes_after(&mut self, kind: &str, age: Duration) {
        self.completion_times.add(age);
        let by_kind = &mut self.completion_times_by_kind;
        if by_kind.len() < MOST_KINDS || by_kind.contains_key(kind) {
            by_kind.entry(kind.to_owned()).or_default().add(age);
        }
    }

    /// Notes where in a batch the asking stopped, for lack of time or because the provider was
    /// down. The next pass begins there: else the rows behind would never have their turn. Voices
    /// that were claimed by name move nothing: the next pass comes to their rows anyway.
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

    /// Where the next pass should begin, given where the cursor stands.
    pub(super) fn resume_after(&self, cursor: Option<Position>) -> Option<Position> {
        match &self.first_not_asked {
            Some(place) => place.preceded_by.clone(),
            None => cursor,
        }
    }

    /// Single lookups that a voice took so far, on average; none while nothing is known.
    pub(super) fn singles_a_voice(&self) -> f64 {
        let (by_list, singly) = self
            .shown
            .values()
            .fold((0, 0), |(listed, single), (l, s)| (listed + l, single + s));
        let singly = singly + self.counts.missing;
        singly as f64 / (by_list + singly).max(1) as f64
    }

    /// Kinds of voices that the list never showed and single lookups kept finding.
    pub(super) fn unlisted(&self) -> Vec<String> {
        self.shown
            .iter()
            .filter(|(_, (by_list, singly))| *by_list == 0 && *singly >= UNLISTED_AFTER)
            .map(|(kind, _)| kind.clone())
            .collect()
    }

    /// Counts a voice that could not be looked up while the provider answered other requests; `new` says that
    /// this was not known of it. Returns the note of it, if it is clear that the reason lies in the voice.
    pub(super) fn unanswerable(
        &mut self,
        note: Note,
        lease: Option<Arc<LeaseId>>,
        trouble: &Unavailable,
        id: &ProviderVoiceId,
        new: bool,
    ) -> Option<Note> {
        if !new {
            self.counts.unanswerable += 1;
            return Some(note);
        }
        let entry = self.unanswerable.entry(trouble.kind);
        let example = || (0, format!("{id}: {}", trouble.detail));
        entry.or_insert_with(example).0 += 1;
        if self.any_answered {
            return Some(note);
        }
        if self.undecided.len() < MOST_UNDECIDED {
            self.undecided.push(note);
            self.undecided_leases.extend(lease);
            return None;
        }
        let seen = Seen::Unavailable(trouble.to_string());
        Some(Note { seen, ..note })
    }

    /// Counts rows whose change the database refused. Returns whether the reason lies in the rows: not if they are
    /// many, and the database changed no other.
    pub(super) fn refused(&mut self, rows: &[(Transition, StoreError)]) -> bool {
        let (all, first) = &mut self.refused;
        *all += rows.len();
        let example = rows.first();
        *first = first
            .take()
            .or_else(|| example.map(|(_, error)| (error.exit(), error.to_string())));
        self.any_applied || *all < OUTAGE_AFTER
    }

    /// Why the database refused to change any row, where it was asked to change many.
    pub(super) fn refuses_all(&self) -> Option<StopReason> {
        let (rows, first) = &self.refused;
        let (exit, error) = first.clone()?;
        (!self.any_applied && *rows >= OUTAGE_AFTER)
            .then(|| StopReason::ChangesRefused(exit, format!("{rows} rows: {error}")))
    }

    /// Whether nothing was answered about any voice, though many were asked about by themselves.
    pub(super) fn looks_like_an_outage(&self) -> bool {
        !self.any_answered && self.undecided.len() >= OUTAGE_AFTER
    }

    /// Notes that were kept back, with the leases of their voices, once an answer shows that it is no outage.
    pub(super) fn take_decided(&mut self) -> (Vec<Note>, Vec<Arc<LeaseId>>) {
        match self.any_answered {
            true => (
                std::mem::take(&mut self.undecided),
                std::mem::take(&mut self.undecided_leases),
            ),
            false => Default::default(),
        }
    }

    /// Notes that were kept back until it was clear whether it is an outage.
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

    pub(super) fn unavailable(&mut self, trouble: &Unavailable, id: &ProviderVoiceId) {
        let entry = self.troubles.entry(trouble.kind);
        entry
            .or_insert_with(|| (0, format!("{id}: {}", trouble.detail)))
            .0 += 1;
    }

    pub(super) fn set_aside(&mut self, row: &RowId, why: &SetAside) {
        self.counts.set_aside += 1;
        debug!(voice.row = %row, reason = %why, "voice set aside");
        let entry = self.set_aside.entry(why.kind());
        let first = || (0, row.clone(), why.to_string());
        entry.or_insert_with(first).0 += 1;
    }

    /// Counts a page that was claimed.
    pub(super) fn claimed(&mut self, page: &Page) {
        self.counts.due += page.voices.len() as u64 + page.leased_elsewhere + page.quarantined;
        self.counts.unanswerable += page.quarantined;
        self.counts.leased_elsewhere += page.leased_elsewhere;
        self.set_aside_before += page.set_aside;
    }

    /// What kept voices and events from getting through: one of a kind, however many it met.
    pub(super) fn obstacles(&self) -> Vec<Obstacle> {
        let troubles = self
            .troubles
            .iter()
            .map(|(kind, (voices, example))| Obstacle {
                part: Part::Provider,
                says: format!("{voices} voices not checked ({kind}), such as {example}"),
            });
        let bus = self.bus_trouble.iter().map(|says| Obstacle {
            part: Part::EventBus,
            says: says.clone(),
        });
        let stop_reason = self.stop_reason.as_ref().and_then(StopReason::obstacle);
        stop_reason.into_iter().chain(troubles).chain(bus).collect()
    }

    /// One line for each reason to set voices aside, however many it met.
    pub(super) fn log_set_aside(&self) {
        for (kind, (voices, example, reason)) in &self.set_aside {
            warn!(
                kind, voices, %example, reason,
                "voices set aside; after three times they are skipped for a day; `voice-sync inspect` shows the reason"
            );
        }
    }

    /// One line for each kind of trouble, however many voices it met.
    pub(super) fn log_troubles(&self) {
        if self.set_aside_before > 0 {
            let voices = self.set_aside_before;
            info!(
                voices,
                "these voices were set aside and are skipped for up to a day; `voice-sync retry --set-aside` looks them up again"
            );
        }
        for (kind, (voices, example)) in &self.troubles {
            warn!(%kind, voices, %example, "voices not checked; they stay in processing and will be retried");
        }
        if self.counts.unanswerable > 0 {
            let voices = self.counts.unanswerable;
            info!(
                voices,
                "unanswerable voices stay in processing and are looked up at growing intervals; see `voice-sync list --unanswerable`"
            );
        }
    }

    /// One line for each kind of trouble with single voices, however many met it for the first time.
    pub(super) fn log_unanswerable(&self) {
        for (kind, (voices, example)) in &self.unanswerable {
            warn!(
                %kind, voices, %example,
                "voices cannot be looked up, while the provider answers other requests; they stay in processing and are looked up one by one"
            );
        }
    }

    /// Counts transitions, and logs those that happened: a voice "is" or "would be" what.
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
            // A level is fixed for each place in the code.
            if self.counts.completed + self.counts.failed <= TRANSITIONS_LOGGED {
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
