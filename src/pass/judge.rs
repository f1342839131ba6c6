//! Judging: what each answer means for its row.

use std::time::Duration;

use super::progress::Progress;
use super::{Batch, Judged, Pass};
use crate::meters::Reason;
use crate::provider::error::{Trouble, TroubleKind, printable};
use crate::provider::lookup::{Lookup, Lookups, Mode};
use crate::schedule;
use crate::store::{Note, Seen, Target, Transition};
use crate::verdict::{Verdict, judge, storable};
use crate::voice::{RowId, Voice};

impl Pass<'_> {
    /// Says what each answer means for its row.
    pub(super) fn judge(&self, progress: &Progress, batch: &Batch, lookups: Lookups) -> Judged {
        let held = batch.claimed_at.elapsed();
        let mut judged = Judged {
            transitions: Vec::with_capacity(batch.voices.len()),
            notes: Vec::new(),
            claimed_at: batch.claimed_at,
        };
        let (mut answered, mut missing) = (0, 0);
        let mut completion_times = Vec::new();
        // Where nothing was found, it is our requests that are wrong, or the provider, and no voice.
        let found_any = progress.tally().fuse.found_any()
            || lookups
                .values()
                .any(|lookup| matches!(lookup, Lookup::Found { .. }));
        let is_outage = progress.tally().looks_like_an_outage();
        for claimed in &batch.voices {
            let age = claimed.age.created + held;
            let counted = claimed.age.counted(self.rules.age_from) + held;
            let seen = match claimed.checked_id() {
                Err(invalid) => {
                    self.meters.set_aside(Reason::ProviderId);
                    Seen::SetAside(invalid.to_string())
                }
                Ok(provider_id) => match lookups.get(&provider_id) {
                    Some(Lookup::Found { voice, .. }) => {
                        answered += 1;
                        match self.judge_one(voice, counted) {
                            Ok(target) => {
                                let lag = claimed.unasked_for + held;
                                self.meters.lag.observe(lag.as_secs_f64());
                                match target {
                                    Target::Completed { .. } => completion_times.push(age),
                                    Target::Failed { .. } => {}
                                }
                                judged.transitions.push(Transition {
                                    row: claimed.row.clone(),
                                    provider_id,
                                    target,
                                });
                                continue;
                            }
                            Err(seen) => seen,
                        }
                    }
                    Some(Lookup::Missing) => {
                        answered += 1;
                        missing += 1;
                        Seen::Missing
                    }
                    Some(Lookup::Rejected(reason)) if found_any => {
                        self.meters.set_aside(Reason::Rejected);
                        Seen::SetAside(format!("the provider rejects its id: {reason}"))
                    }
                    Some(Lookup::Rejected(reason)) => {
                        let trouble = Trouble::new(TroubleKind::Status, reason);
                        progress.tally().trouble(&trouble, &provider_id);
                        Seen::Unavailable(trouble.to_string())
                    }
                    Some(Lookup::Unanswerable(trouble)) => {
                        let reason = trouble.to_string();
                        let times = claimed.unanswered + 1;
                        let seen = Seen::Unanswerable { reason, times };
                        let note = note(claimed.row.clone(), seen, age);
                        let mut tally = progress.tally();
                        let new = claimed.unanswered == 0;
                        judged
                            .notes
                            .extend(tally.unanswerable(note, trouble, &provider_id, new));
                        continue;
                    }
                    Some(Lookup::Unavailable(trouble)) => match batch.mode {
                        Mode::Batch | Mode::Single => Seen::Unavailable(trouble.to_string()),
                        Mode::Part | Mode::OneByOne | Mode::Isolated if is_outage => {
                            Seen::Unavailable(trouble.to_string())
                        }
                        Mode::Part | Mode::OneByOne | Mode::Isolated => {
                            Seen::Suspected(trouble.to_string())
                        }
                    },
                    None => Seen::Unavailable("not asked".to_owned()),
                },
            };
            judged.notes.push(note(claimed.row.clone(), seen, age));
        }
        let mut tally = progress.tally();
        tally.fuse.count(answered, missing);
        for age in completion_times {
            tally.completion_times.add(age);
        }
        drop(tally);
        judged
    }

    fn judge_one(&self, voice: &Voice, age: Duration) -> Result<Target, Seen> {
        match judge(voice, age, self.rules) {
            Verdict::Completed { preview_url } => {
                let room = self.store.preview_room();
                match preview_url
                    .as_deref()
                    .map_or(Ok(()), |url| storable(url, room))
                {
                    Ok(()) => Ok(Target::Completed { preview_url }),
                    Err(unstorable) => {
                        self.meters.set_aside(Reason::Preview);
                        Err(Seen::SetAside(unstorable.to_string()))
                    }
                }
            }
            Verdict::Failed(failure) => Ok(Target::Failed {
                reason: printable(&failure.to_string()),
            }),
            Verdict::Processing(stage) => Err(Seen::Processing {
                kind: printable(voice.kind()),
                stage,
            }),
        }
    }
}

pub(super) fn note(row: RowId, seen: Seen, age: Duration) -> Note {
    let again_in = schedule::again_in(age, &seen, fastrand::f64());
    Note {
        row,
        seen,
        again_in,
    }
}
