//! What a pass did, in numbers, and the exit code that follows. Pure.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::core::exit::Exit;
use crate::core::format::{number_of, timestamp};
use crate::core::missing::MassAbsenceGuard;

/// Voices, requests and events of one pass.
///
/// `due = looked_up + unavailable + leased_elsewhere`, and
/// `looked_up = completed + failed + processing + missing + superseded + set_aside`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All voices that the pass had to look up.
    pub due: u64,
    /// Of those, voices with an answer.
    pub looked_up: u64,
    /// Moved to completed.
    pub completed: u64,
    /// Moved to failed.
    pub failed: u64,
    /// Answered, and still in processing.
    pub processing: u64,
    /// Not known to the provider, and not failed for it (yet).
    pub missing: u64,
    /// Not looked up, or without an answer.
    pub unavailable: u64,
    /// Of those, voices that an earlier pass had found to be unanswerable.
    #[serde(skip_serializing_if = "is_zero")]
    pub unanswerable: u64,
    /// Of those, the ones whose rows the application had locked.
    #[serde(skip_serializing_if = "is_zero")]
    pub locked: u64,
    /// Could not be asked about or stored.
    pub set_aside: u64,
    /// Leased by another process.
    pub leased_elsewhere: u64,
    /// Answered, but the row had changed meanwhile.
    pub superseded: u64,
    /// Requests sent to the provider, retries and nudges included.
    pub requests: u64,
    /// Requests that repeated an earlier one.
    pub retries: u64,
    /// Events that were committed with their transition.
    pub events_recorded: u64,
    /// Events that reached the event bus.
    pub events_published: u64,
    /// Events that were recorded by this or an earlier run, and are not published yet.
    pub events_pending: u64,
    /// Text-to-speech requests that make previews appear, and the characters that were spoken.
    pub nudged: u64,
    pub nudge_characters: u64,
}

impl Counts {
    fn add(&mut self, later: &Self) {
        let Self {
            due,
            looked_up,
            completed,
            failed,
            processing,
            missing,
            unavailable,
            unanswerable,
            locked,
            set_aside,
            leased_elsewhere,
            superseded,
            requests,
            retries,
            events_recorded,
            events_published,
            events_pending,
            nudged,
            nudge_characters,
        } = later;
        self.due += due;
        self.looked_up += looked_up;
        self.completed += completed;
        self.failed += failed;
        self.processing += processing;
        self.missing += missing;
        self.unavailable += unavailable;
        self.unanswerable += unanswerable;
        self.locked += locked;
        self.set_aside += set_aside;
        self.leased_elsewhere += leased_elsewhere;
        self.superseded += superseded;
        self.requests += requests;
        self.retries += retries;
        self.events_recorded += events_recorded;
        self.events_published += events_published;
        self.events_pending = *events_pending;
        self.nudged += nudged;
        self.nudge_characters += nudge_characters;
    }

    /// Requests that looked voices up, which the request budget counts.
    pub fn lookup_requests(&self) -> u64 {
        self.requests.saturating_sub(self.nudged)
    }

    /// Whether other processes leased all voices that were due: such a pass says nothing about them.
    pub fn only_met_leases(&self) -> bool {
        self.due > 0 && self.due == self.leased_elsewhere && self.events_published == 0
    }

    /// Voices with a verdict.
    pub fn finished(&self) -> u64 {
        self.completed + self.failed
    }

    /// Voices with an answer of any kind.
    pub fn answered(&self) -> u64 {
        self.completed
            + self.failed
            + self.processing
            + self.missing
            + self.superseded
            + self.set_aside
    }
}

/// Why a pass ended before it had looked up all voices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The provider refuses the key, with its message.
    KeyRefused(String),
    /// Too many voices are missing: the key is probably of another workspace.
    OtherWorkspace(MassAbsenceGuard),
    /// The circuit breaker is open, or the provider asked for a pause.
    ProviderDown,
    /// `--max-runtime` is over.
    TimeOver,
    /// The process received a signal to stop.
    Stopped,
    /// The database failed: the exit code, and the message.
    Database(Exit, String),
    /// The database refuses every change: the exit code, and the message.
    ChangesRefused(Exit, String),
}

impl StopReason {
    /// Whether it matters even if every voice was looked up.
    pub fn is_about_the_key(&self) -> bool {
        match self {
            Self::KeyRefused(_) | Self::OtherWorkspace(_) => true,
            Self::ProviderDown
            | Self::TimeOver
            | Self::Stopped
            | Self::Database(..)
            | Self::ChangesRefused(..) => false,
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyRefused(reason) => write!(f, "the provider refuses the key: {reason}"),
            Self::OtherWorkspace(guard) => write!(
                f,
                "{} of {} voices are unknown to the provider; the key is probably of another workspace: set the key \
                 of the right one (ELEVENLABS_API_KEY); if these voices were really deleted, name them with --voice, \
                 fewer than ten at a time",
                guard.missing(),
                guard.answered(),
            ),
            Self::ProviderDown => f.write_str(
                "provider unavailable: circuit breaker open, or cooldown; voices stay \
                in processing, and the next pass continues",
            ),
            Self::TimeOver => f.write_str("the time limit is over; the next pass continues"),
            Self::Stopped => f.write_str("stopped by a signal"),
            Self::Database(_, error) => f.write_str(error),
            Self::ChangesRefused(_, error) => write!(
                f,
                "the database refuses every change of a row: {error}; check the table for a trigger or a rule"
            ),
        }
    }
}

/// What a pass depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The application's table and voice-sync's own.
    Database,
    /// The provider that voices are looked up at.
    Provider,
    /// The event bus that events are published to.
    EventBus,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "database",
            Self::Provider => "provider",
            Self::EventBus => "event bus",
        })
    }
}

/// What prevented voices or events from being processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Where it is.
    pub part: Part,
    /// The message.
    pub says: String,
}

impl StopReason {
    /// The part that it is about, unless it is about the pass itself.
    fn part(&self) -> Option<Part> {
        match self {
            Self::KeyRefused(_) | Self::OtherWorkspace(_) | Self::ProviderDown => {
                Some(Part::Provider)
            }
            Self::Database(..) | Self::ChangesRefused(..) => Some(Part::Database),
            Self::TimeOver | Self::Stopped => None,
        }
    }

    /// The same as an obstacle, if it is about a part.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let says = self.to_string();
        self.part().map(|part| Obstacle { part, says })
    }
}

/// The report of one pass, as `sync-once --output json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The pass's own id, which is also in its log lines.
    pub run_id: Uuid,
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    pub started_at: DateTime<Utc>,
    /// When it ended.
    #[serde(serialize_with = "rfc3339")]
    pub finished_at: DateTime<Utc>,
    /// Time between the two in milliseconds, by a monotonic clock.
    pub duration_ms: u64,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The counts.
    #[serde(flatten)]
    pub counts: Counts,
    /// The code that the process exits with.
    #[serde(serialize_with = "code")]
    pub exit_code: Exit,
    /// Why the pass ended early, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What prevented voices or events from being processed.
    #[serde(skip)]
    pub obstacles: Vec<Obstacle>,
    /// Whether the key found voices within a day: if so, a pass does not stop because many voices are missing.
    #[serde(skip)]
    pub key_works: bool,
}

impl Report {
    /// Adds a later pass. Voices that both looked up count twice.
    pub fn merge(&mut self, later: Self) {
        let Self {
            run_id: _,
            started_at: _,
            finished_at,
            duration_ms: _,
            dry_run: _,
            counts,
            exit_code,
            reason,
            obstacles,
            key_works,
        } = later;
        self.finished_at = finished_at;
        let lasted = finished_at - self.started_at;
        self.duration_ms = lasted.num_milliseconds().unsigned_abs();
        self.counts.add(&counts);
        self.exit_code = exit_code;
        self.reason = reason;
        self.obstacles = obstacles;
        self.key_works = key_works;
    }

    /// The same report, but of a pass that ended early.
    #[must_use]
    pub fn stopped(self, stop_reason: &StopReason) -> Self {
        Self {
            exit_code: Exit::Temporary,
            reason: Some(stop_reason.to_string()),
            ..self
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*time))
}

fn code<S: Serializer>(exit: &Exit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(exit.code())
}

/// The exit code of a pass. `events_stuck` says that events wait and no process is publishing them. Voices that were
/// known to be unanswerable do not count: another run changes nothing about them.
pub fn exit(counts: &Counts, stop_reason: Option<&StopReason>, events_stuck: bool) -> Exit {
    match stop_reason {
        Some(StopReason::Database(exit, _) | StopReason::ChangesRefused(exit, _)) => *exit,
        Some(StopReason::KeyRefused(_) | StopReason::OtherWorkspace(_)) => Exit::Key,
        Some(StopReason::ProviderDown | StopReason::TimeOver | StopReason::Stopped) => {
            Exit::Temporary
        }
        None if counts.unavailable > counts.unanswerable || events_stuck => Exit::Temporary,
        None => Exit::Success,
    }
}

impl fmt::Display for Report {
    /// A few lines for people. Counts that are usually zero are left out if they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counts;
        let seconds = self.duration_ms as f64 / 1000.0;
        let dry = if self.dry_run {
            " (dry run: nothing was written)"
        } else {
            ""
        };
        writeln!(
            f,
            "{} due, {} looked up in {seconds:.2} s{dry}",
            c.due, c.looked_up
        )?;
        writeln!(
            f,
            "  {} completed, {} failed, {} still processing",
            c.completed, c.failed, c.processing
        )?;
        for (number, text) in [
            (c.missing, "missing at the provider"),
            (
                c.set_aside,
                "set aside: they could not be looked up or stored",
            ),
            (
                c.superseded,
                "superseded: the application changed the row meanwhile",
            ),
            (c.leased_elsewhere, "leased by another process"),
            (c.locked, "locked by the application; they will be retried"),
            (
                c.unavailable.saturating_sub(c.locked),
                "not checked: no lookup, or no answer",
            ),
            (
                c.unanswerable,
                "of these known to be unanswerable; see `voice-sync status`",
            ),
            (c.nudged, "text-to-speech requests to make previews appear"),
        ] {
            if number > 0 {
                writeln!(f, "  {number} {text}")?;
            }
        }
        writeln!(
            f,
            "  {}, {} of them retries",
            number_of(c.requests, "request", "requests"),
            c.retries
        )?;
        write!(
            f,
            "  {} recorded, {} published, {} pending",
            number_of(c.events_recorded, "event", "events"),
            c.events_published,
            c.events_pending
        )?;
        match &self.reason {
            Some(reason) => write!(
                f,
                "
stopped (exit {}): {reason}",
                self.exit_code.code()
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_reflects_unfinished_work() {
        let clean = Counts {
            due: 3,
            looked_up: 3,
            processing: 3,
            missing: 1,
            set_aside: 1,
            leased_elsewhere: 1,
            ..Counts::default()
        };
        let unanswered = Counts {
            unavailable: 1,
            ..clean.clone()
        };
        assert_eq!(exit(&clean, None, false), Exit::Success);
        assert_eq!(exit(&clean, None, true), Exit::Temporary);
        assert_eq!(exit(&unanswered, None, false), Exit::Temporary);
        let known = Counts {
            unanswerable: 1,
            ..unanswered.clone()
        };
        assert_eq!(exit(&known, None, false), Exit::Success);
        assert_eq!(exit(&known, None, true), Exit::Temporary);
        assert_eq!(
            exit(&known, Some(&StopReason::ProviderDown), false),
            Exit::Temporary
        );
        for (stop_reason, code) in [
            (StopReason::KeyRefused("no".into()), Exit::Key),
            (
                StopReason::OtherWorkspace(MassAbsenceGuard::default()),
                Exit::Key,
            ),
            (StopReason::ProviderDown, Exit::Temporary),
            (StopReason::TimeOver, Exit::Temporary),
            (StopReason::Stopped, Exit::Temporary),
            (StopReason::Database(Exit::Io, "full".into()), Exit::Io),
        ] {
            assert_eq!(
                exit(&unanswered, Some(&stop_reason), true),
                code,
                "{stop_reason}"
            );
        }
    }

    #[test]
    fn json_has_the_documented_fields_in_order() {
        let report = Report {
            run_id: Uuid::nil(),
            started_at: DateTime::UNIX_EPOCH,
            finished_at: DateTime::UNIX_EPOCH,
            duration_ms: 0,
            dry_run: false,
            counts: Counts::default(),
            exit_code: Exit::Success,
            reason: None,
            obstacles: Vec::new(),
            key_works: false,
        };
        let json = serde_json::to_string(&report).expect("serialises");
        assert_eq!(
            json,
            r#"{"run_id":"00000000-0000-0000-0000-000000000000","started_at":"1970-01-01T00:00:00.000Z","finished_at":"1970-01-01T00:00:00.000Z","duration_ms":0,"dry_run":false,"due":0,"looked_up":0,"completed":0,"failed":0,"processing":0,"missing":0,"unavailable":0,"set_aside":0,"leased_elsewhere":0,"superseded":0,"requests":0,"retries":0,"events_recorded":0,"events_published":0,"events_pending":0,"nudged":0,"nudge_characters":0,"exit_code":0}"#
        );
    }
}
