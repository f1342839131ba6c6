//! The store on PostgreSQL: one statement, and so one transaction, for each operation.
//!
//! Parameters are arrays, cast to the column's type (`$1::text[]::uuid[]`): columns are never cast,
//! so that their indexes serve. Own rows are locked with SKIP LOCKED, and no lock outlives its
//! statement.

mod apply;
mod catalog;
mod checkup;
mod claim;
mod index;
mod ledger;
mod mend;
mod outbox;
mod session;
mod survey;

use std::time::Duration;

use crate::store::{Absent, CLOCK_SLACK};

pub(super) use catalog::shape;
pub(super) use index::make_index;
pub(super) use session::{Sessions, lacks_privilege};

/// Whether a moment that was set this far ahead at the most is still to come. One that is much further ahead was set
/// before the database's clock was set back, and is over.
fn is_ahead(moment: &str, longest: Duration) -> String {
    let longest = (longest + CLOCK_SLACK).as_secs();
    format!(
        "COALESCE({moment} > now() AND {moment} <= now() + interval '{longest} seconds', FALSE)"
    )
}

/// Seconds until such a moment; 0 if it is over.
fn seconds_until(moment: &str, longest: Duration) -> String {
    let is_ahead = is_ahead(moment, longest);
    format!("CASE WHEN {is_ahead} THEN extract(epoch FROM {moment} - now()) ELSE 0 END::float8")
}

/// The application's table as SQL needs it: names quoted, values quoted and cast.
pub(super) struct PostgresStore {
    sessions: Sessions,
    table: String,
    id: String,
    id_type: String,
    user_id: String,
    provider_id: String,
    status: String,
    /// Where this or the next one is missing, completions are kept in voice-sync's own table.
    preview_url: Option<String>,
    completed_at: Option<String>,
    created_at: String,
    /// A row that was completed before and stands in processing again was cloned anew then.
    completed_before: String,
    processing: String,
    completed: String,
    failed: String,
    /// The present, in the type of the column `completed_at`.
    completed_now: String,
    preview_room: Option<usize>,
    absent: Vec<Absent>,
    own_tables: bool,
}

impl PostgresStore {
    pub(super) fn into_sessions(self) -> Sessions {
        self.sessions
    }

    pub(super) fn doubt_connections(&self) {
        self.sessions.doubt();
    }

    fn keeps_completions(&self) -> bool {
        self.preview_url.is_none() || self.completed_at.is_none()
    }

    pub(super) fn has_own_tables(&self) -> bool {
        self.own_tables
    }

    pub(super) fn absent(&self) -> &[Absent] {
        &self.absent
    }

    pub(super) fn preview_room(&self) -> Option<usize> {
        self.preview_room
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
