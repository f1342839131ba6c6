//! When "the provider does not know this voice" is believed. Pure.
//!
//! A voice may not be visible right after its creation, and with a key of another workspace every voice is missing.
//! So a missing voice has to be confirmed, and if too many are missing, none of them fails: in one pass
//! ([`MassAbsenceGuard`]) and, because a daemon makes many small passes, over all passes of a day ([`MassAbsence`]).

use std::time::Duration;

/// How many lookups in a row must not find a voice before it is believed to be missing.
pub const CONFIRMATIONS: u32 = 3;
/// The guard needs at least this many missing voices.
const FUSE_FLOOR: u64 = 10;
/// One missing voice out of this many is not too many.
const TOO_MANY: u64 = 5;
/// If this many voices were looked up and none was found, the pass stops.
const HOPELESS_AFTER: u64 = 100;

/// What is known about a voice that single lookups did not find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absence {
    /// Lookups in a row, with one key, that did not find it.
    pub times: u32,
    /// Time since the first of them.
    pub lasting: Duration,
    /// What the same key found besides it.
    pub others: Others,
}

/// What a key found besides a missing voice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Other voices, since the first lookup that did not find this one.
    FoundSince,
    /// Other voices, before that.
    FoundBefore,
    /// Nothing so far: the key may be of another workspace.
    NeverFound,
}

/// Whether a missing voice is believed to be missing.
///
/// If `missing_after` is zero, the first lookup is believed. Otherwise it takes three lookups over that time, with
/// another voice found in between. An application with a single voice in processing has no other to find: if its key
/// found voices earlier, the voice must have been missing for `fail_after`.
pub fn is_confirmed(
    absence: Absence,
    missing_after: Duration,
    fail_after: Option<Duration>,
) -> bool {
    let Absence {
        times,
        lasting,
        others,
    } = absence;
    if missing_after.is_zero() {
        return times > 0;
    }
    let long_enough = match others {
        Others::FoundSince => Some(missing_after),
        Others::FoundBefore => fail_after.map(|limit| limit.max(missing_after)),
        Others::NeverFound => None,
    };
    times >= CONFIRMATIONS && long_enough.is_some_and(|limit| lasting >= limit)
}

/// What to do about mass absence.
pub const MASS_ABSENCE_ADVICE: &str = "set the key of the right workspace (ELEVENLABS_API_KEY); if these voices were \
                                       really deleted, name them with `voice-sync sync-once --voice`, fewer than ten \
                                       at a time";

/// What an account missed and found, over all passes and processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MassAbsence {
    /// Voices in processing that are missing.
    pub missing: u64,
    /// Voices that failed within a day because they were missing.
    pub failed: u64,
    /// Voices that were found within a day, counted only as far as it matters.
    pub found: u64,
    /// Whether mass absence was already in effect and has not ended.
    pub lasts: bool,
}

impl MassAbsence {
    /// How many found voices need to be counted for this many missing ones.
    pub fn enough_found(missing: u64) -> u64 {
        missing.saturating_mul(TOO_MANY)
    }

    /// Whether no voice may fail for being missing: at least ten are missing, or failed because they were, and they
    /// are more than a fifth of all. Once this is so, it lasts until at most a fifth are missing, even if fewer
    /// than ten are.
    pub fn forbids_failures(self) -> bool {
        let Self {
            missing,
            failed,
            found,
            lasts,
        } = self;
        let is_large = |missing: u64| missing * TOO_MANY > missing + found;
        match lasts {
            true => is_large(missing),
            false => missing + failed >= FUSE_FLOOR && is_large(missing + failed),
        }
    }

    /// The same, as one pass would have counted it.
    pub fn as_guard(self) -> MassAbsenceGuard {
        MassAbsenceGuard {
            answered: self.missing + self.failed + self.found,
            missing: self.missing + self.failed,
        }
    }
}

/// Detects a key of another workspace, by the voices that were looked up in one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MassAbsenceGuard {
    answered: u64,
    missing: u64,
}

impl MassAbsenceGuard {
    /// Counts answers about voices, and how many of them were "not found".
    pub fn count(&mut self, answered: u64, missing: u64) {
        self.answered += answered;
        self.missing += missing;
    }

    /// Voices that were looked up.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Voices that the provider did not find.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Voices that the provider found.
    pub fn found(&self) -> u64 {
        self.answered - self.missing
    }

    /// Whether any voice was found.
    pub fn found_any(&self) -> bool {
        self.found() > 0
    }

    /// Whether any voice was not found.
    pub fn missed_any(&self) -> bool {
        self.missing > 0
    }

    /// Whether more than a fifth, and at least ten, are missing: then none of them may fail.
    pub fn is_tripped(&self) -> bool {
        self.missing >= FUSE_FLOOR && self.missing * TOO_MANY > self.answered
    }

    /// Whether many voices were looked up and none was found: more requests would be wasted.
    pub fn finds_nothing(&self) -> bool {
        self.answered >= HOPELESS_AFTER && !self.found_any()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn confirmed(times: u32, lasting: Duration, others: Others) -> bool {
        let absence = Absence {
            times,
            lasting,
            others,
        };
        is_confirmed(absence, 15 * MINUTE, Some(DAY))
    }

    #[test]
    fn absence_is_confirmed_after_three_lookups_over_15_minutes() {
        assert!(!confirmed(1, DAY, Others::FoundSince));
        assert!(!confirmed(2, DAY, Others::FoundSince));
        assert!(!confirmed(3, 14 * MINUTE, Others::FoundSince));
        assert!(confirmed(3, 15 * MINUTE, Others::FoundSince));
        assert!(confirmed(9, DAY, Others::FoundSince));
    }

    #[test]
    fn absence_takes_fail_after_if_no_other_voice_was_found_since() {
        assert!(!confirmed(100, 23 * 60 * MINUTE, Others::FoundBefore));
        assert!(confirmed(100, DAY, Others::FoundBefore));
        let absence = Absence {
            times: 100,
            lasting: 100 * DAY,
            others: Others::FoundBefore,
        };
        assert!(!is_confirmed(absence, 15 * MINUTE, None));
    }

    #[test]
    fn key_that_never_found_a_voice_confirms_no_absence() {
        assert!(!confirmed(u32::MAX, 1000 * DAY, Others::NeverFound));
    }

    #[test]
    fn missing_after_zero_confirms_the_first_absence() {
        let first = Absence {
            times: 1,
            lasting: Duration::ZERO,
            others: Others::NeverFound,
        };
        assert!(is_confirmed(first, Duration::ZERO, None));
        assert!(!is_confirmed(
            Absence { times: 0, ..first },
            Duration::ZERO,
            None
        ));
    }

    #[test]
    fn mass_absence_guard_trips_at_ten_and_more_than_a_fifth() {
        for (answered, missing, blown) in [
            (0, 0, false),
            (9, 9, false),
            (10, 10, true),
            (50, 10, false),
            (49, 10, true),
            (1000, 200, false),
            (1000, 201, true),
        ] {
            let mut guard = MassAbsenceGuard::default();
            guard.count(answered, missing);
            assert_eq!(guard.is_tripped(), blown, "{missing} of {answered}");
        }
    }

    #[test]
    fn mass_absence_accumulates_over_passes_until_few_are_missing() {
        let absence = |missing, failed, found, lasts| MassAbsence {
            missing,
            failed,
            found,
            lasts,
        };
        for (missing, failed, found, lasts, forbidden) in [
            (0, 0, 0, false, false),
            (9, 0, 0, false, false),
            (10, 0, 0, false, true),
            (10, 0, 40, false, false),
            (10, 0, 39, false, true),
            // Small passes: six failed already, and six more are missing.
            (6, 6, 10, false, true),
            (6, 6, 100, false, false),
            // Once it is there, no floor ends it, but evidence does.
            (6, 6, 10, true, true),
            (1, 0, 3, true, true),
            (1, 0, 4, true, false),
            (0, 9, 0, true, false),
        ] {
            let absence = absence(missing, failed, found, lasts);
            assert_eq!(absence.forbids_failures(), forbidden, "{absence:?}");
        }
        let enough = MassAbsence::enough_found(12);
        assert!(!absence(12, 0, enough, false).forbids_failures());
    }

    #[test]
    fn mass_absence_guard_detects_that_nothing_was_found() {
        let mut guard = MassAbsenceGuard::default();
        guard.count(99, 99);
        assert!(!guard.finds_nothing());
        guard.count(1, 1);
        assert!(guard.finds_nothing());
        guard.count(1, 0);
        assert!(!guard.finds_nothing());
    }
}
