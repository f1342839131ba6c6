//! The differences between the SQL of the two databases, except those with a file of their own in `postgres` and
//! `sqlite`.
//!
//! Moments are `timestamptz` on PostgreSQL and whole milliseconds since 1970 on SQLite. Spans are in seconds on both.

use std::time::Duration;

use super::CLOCK_SLACK;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Sqlite,
}

impl Dialect {
    /// The current time: constant within a transaction on PostgreSQL, within a statement on SQLite.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Self::Postgres => "now()",
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        }
    }

    /// One of voice-sync's own tables.
    pub(crate) fn own(self, table: &str) -> String {
        match self {
            Self::Postgres => format!("voice_sync.{table}"),
            Self::Sqlite => format!("voice_sync_{table}"),
        }
    }

    /// A constant span that can be added to a moment or subtracted from it.
    pub(crate) fn span(self, span: Duration) -> String {
        match self {
            Self::Postgres => format!("interval '{} seconds'", span.as_secs()),
            Self::Sqlite => span.as_millis().to_string(),
        }
    }

    /// The same for a span in seconds, given as SQL.
    pub(crate) fn seconds(self, seconds: &str) -> String {
        match self {
            Self::Postgres => format!("make_interval(secs => {seconds})"),
            Self::Sqlite => format!("CAST({seconds} * 1000 AS INTEGER)"),
        }
    }

    /// Seconds between two moments.
    pub(crate) fn between(self, earlier: &str, later: &str) -> String {
        match self {
            Self::Postgres => format!("date_part('epoch', {later} - {earlier})"),
            Self::Sqlite => format!("(({later} - {earlier}) / 1000.0)"),
        }
    }

    /// Seconds since a moment.
    pub(crate) fn since(self, moment: &str) -> String {
        self.between(moment, self.now())
    }

    /// Whether a moment that is set at most this far ahead is in the future. A moment much further ahead was set
    /// before the database's clock was set back, and counts as past.
    pub(crate) fn is_ahead(self, moment: &str, longest: Duration) -> String {
        let (now, longest) = (self.now(), self.span(longest + CLOCK_SLACK));
        format!("COALESCE({moment} > {now} AND {moment} <= {now} + {longest}, FALSE)")
    }

    /// Seconds until such a moment; 0 if it is past.
    pub(crate) fn seconds_until(self, moment: &str, longest: Duration) -> String {
        let (is_ahead, left) = (
            self.is_ahead(moment, longest),
            self.between(self.now(), moment),
        );
        format!("CASE WHEN {is_ahead} THEN {left} ELSE 0.0 END")
    }

    /// Whether the voice `w` is due by a hint, now or soon. An index has the same condition.
    pub(crate) fn is_hinted(self) -> &'static str {
        "COALESCE(w.next_due = w.hinted_at, FALSE)"
    }

    /// The later of two such moments, unless the first is past.
    pub(crate) fn latest(self, moment: &str, other: &str, longest: Duration) -> String {
        let (is_ahead, greatest) = (self.is_ahead(moment, longest), self.greatest(moment, other));
        format!("CASE WHEN {is_ahead} THEN {greatest} ELSE {other} END")
    }

    /// The greater of two values; if one is null, the other one.
    pub(crate) fn greatest(self, one: &str, other: &str) -> String {
        match self {
            Self::Postgres => format!("GREATEST({one}, {other})"),
            Self::Sqlite => format!("max(COALESCE({one}, {other}), COALESCE({other}, {one}))"),
        }
    }

    /// The lesser of two values that are not null.
    pub(crate) fn least(self, one: &str, other: &str) -> String {
        match self {
            Self::Postgres => format!("LEAST({one}, {other})"),
            Self::Sqlite => format!("min({one}, {other})"),
        }
    }

    /// A parameter that is a JSON document.
    pub(crate) fn json(self, parameter: &str) -> String {
        match self {
            Self::Postgres => format!("{parameter}::jsonb"),
            Self::Sqlite => parameter.to_owned(),
        }
    }

    /// A parameter that is a text, where the context does not say so.
    pub(crate) fn text(self, parameter: &str) -> String {
        match self {
            Self::Postgres => format!("{parameter}::text"),
            Self::Sqlite => parameter.to_owned(),
        }
    }

    /// A JSON object from keys and values.
    pub(crate) fn json_object(self, members: &str) -> String {
        match self {
            Self::Postgres => format!("jsonb_build_object({members})"),
            Self::Sqlite => format!("json_object({members})"),
        }
    }

    /// A JSON object with the members of another one added.
    pub(crate) fn json_merged(self, object: &str, other: &str) -> String {
        match self {
            Self::Postgres => format!("{object} || {other}"),
            Self::Sqlite => format!("json_patch({object}, {other})"),
        }
    }

    /// A moment from the value of a member of a JSON object.
    pub(crate) fn stored_moment(self, value: &str) -> String {
        match self {
            Self::Postgres => format!("{value}::timestamptz"),
            Self::Sqlite => value.to_owned(),
        }
    }

    /// The smallest of some ids.
    pub(crate) fn min_id(self, id: &str) -> String {
        match self {
            Self::Postgres => format!("min({id}::text)::uuid"),
            Self::Sqlite => format!("min({id})"),
        }
    }

    /// The members of a JSON object, as `key` and `value`.
    pub(crate) fn members(self, object: &str) -> String {
        match self {
            Self::Postgres => format!("jsonb_each_text({object})"),
            Self::Sqlite => format!("json_each({object})"),
        }
    }

    /// Texts as a JSON array; an empty array if there are none.
    pub(crate) fn json_texts(self, text: &str) -> String {
        match self {
            Self::Postgres => format!("COALESCE(json_agg({text}), '[]')::text"),
            Self::Sqlite => format!("json_group_array({text})"),
        }
    }

    /// The keys of the voices in the lease `l`.
    pub(crate) fn voices_of_lease(self) -> &'static str {
        match self {
            Self::Postgres => "SELECT unnest(l.voices)",
            Self::Sqlite => "SELECT j.value FROM json_each(l.voices) j",
        }
    }

    /// The keys of the voices in leases `l` that meet a condition.
    pub(crate) fn leased_voices(self, condition: &str) -> String {
        let leases = self.own("leases");
        match self {
            Self::Postgres => format!("SELECT unnest(l.voices) FROM {leases} l WHERE {condition}"),
            Self::Sqlite => {
                format!("SELECT j.value FROM {leases} l, json_each(l.voices) j WHERE {condition}")
            }
        }
    }

    /// Locks the rows that a SELECT finds, without those that others have locked. SQLite has a single writer.
    pub(crate) fn skip_locked(self) -> &'static str {
        match self {
            Self::Postgres => "FOR UPDATE SKIP LOCKED",
            Self::Sqlite => "",
        }
    }
}
