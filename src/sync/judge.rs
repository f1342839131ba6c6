//! Judging: decides for each answer what happens to its row.

use std::time::Duration;

use super::Pass;
use super::batch::{Batch, Judged};
use super::progress::Progress;
use crate::core::format::printable;
use crate::core::judge::{Grounds, Judgement, judge};
use crate::core::lookup::{Lookup, Lookups, Unavailable, UnavailableKind};
use crate::core::schedule;
use crate::core::transition::{Claimed, Note, Seen, Target, Transition};
use crate::provider::lookup::Mode;

impl Pass<'_> {
    /// Decides for each answer what happens to its row, and counts it.
    pub(super) fn judge(&self, progress: &Progress, batch: Batch, lookups: &Lookups) -> Judged {
        let Batch {
            place: _,
            voices,
            claimed_at,
            mode,
            lease,
        } = batch;
        let held = claimed_at.elapsed();
        let mut tally = progress.tally();
        let is_found = |lookup: &Lookup| matches!(lookup, Lookup::Found { .. });
        let grounds = Grounds {
            rules: self.rules,
            preview_room: self.store.preview_room(),
            held,
            found_any: tally.guard.found_any() || lookups.values().any(is_found),
            is_suspect: match mode {
                Mode::Batch | Mode::Single => false,
                Mode::Part | Mode::OneByOne | Mode::Isolated => !tally.looks_like_an_outage(),
            },
        };
        let (mut transitions, mut notes) = (Vec::with_capacity(voices.len()), Vec::new());
        for claimed in &voices {
            let id = claimed.checked_id().ok();
            let lookup = id.as_ref().and_then(|id| lookups.get(id));
            match lookup {
                Some(Lookup::Found { .. }) => tally.guard.count(1, 0),
                Some(Lookup::Missing) => tally.guard.count(1, 1),
                Some(_) | None => {}
            }
            match (judge(claimed, lookup, grounds), id, lookup) {
                (Judgement::Moves(target, _), Some(provider_id), lookup) => {
                    let lag = claimed.unasked_for + held;
                    self.metrics.lag.observe(lag.as_secs_f64());
                    if let (Target::Completed { .. }, Some(Lookup::Found { voice, .. })) =
                        (&target, lookup)
                    {
                        let kind = printable(voice.kind());
                        tally.completes_after(&kind, claimed.age.created + held);
                    }
                    transitions.push(Transition {
                        row: claimed.row.clone(),
                        provider_id: provider_id.into(),
                        target,
                    });
                }
                (Judgement::Moves(..), None, _) => {}
                (Judgement::Stays(seen, _), Some(id), Some(Lookup::Unanswerable(why))) => {
                    let is_new = claimed.unanswered == 0;
                    let note = note(claimed, seen, held);
                    notes.extend(tally.unanswerable(note, lease.clone(), why, &id, is_new));
                }
                (Judgement::Stays(seen, _), id, lookup) => {
                    if let (Some(Lookup::Rejected(reason)), Some(id), Seen::Unavailable(_)) =
                        (lookup, &id, &seen)
                    {
                        let why = Unavailable::new(UnavailableKind::Status, reason);
                        tally.unavailable(&why, id);
                    }
                    if let (Some(nudger), Some(id), Some(Lookup::Found { voice, .. })) =
                        (self.nudger, id, lookup)
                        && nudger
                            .rules
                            .want(claimed, voice, &seen, held, self.rules.age_from)
                    {
                        nudger.offer(claimed, &id, self.provider.account());
                    }
                    if let Seen::SetAside(why) = &seen {
                        self.metrics.set_aside(why);
                    }
                    notes.push(note(claimed, seen, held));
                }
            }
        }
        Judged {
            transitions,
            notes,
            claimed_at,
            lease,
        }
    }
}

fn note(claimed: &Claimed, seen: Seen, held: Duration) -> Note {
    let again_in = schedule::again_in(claimed.age.created + held, &seen, fastrand::f64());
    Note {
        row: claimed.row.clone(),
        provider_id: claimed.provider_id.clone(),
        seen,
        again_in,
    }
}

/// The note for a transition that was not made.
pub(super) fn note_of(transition: &Transition, seen: Seen) -> Note {
    let again_in = schedule::again_in(Duration::ZERO, &seen, fastrand::f64());
    Note {
        row: transition.row.clone(),
        provider_id: Some(transition.provider_id.to_string()),
        seen,
        again_in,
    }
}
