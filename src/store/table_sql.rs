//! The application's table as SQL, and each rule about its rows, once.
//!
//! In all statements, `v` is a row of the application's table, and `w` is the row of voice-sync's own table `voices`
//! with the notes about it.

use uuid::Uuid;

use super::args::Args;
use super::dialect::Dialect;
use super::survey::forms;
use super::table::MissingColumn;
use super::{LEASE, MAX_ISOLATED_SCHEDULE, MAX_SCHEDULE, SET_ASIDE, values::Selection};

/// The form of a UUID or another key in a column, and in events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyForm {
    /// Without a change.
    Plain,
    /// SQLAlchemy's `CHAR(32)` on SQLite: a UUID without dashes. Events have the dashes.
    BareUuid,
}

/// Names are quoted, values are quoted and cast.
pub(crate) struct TableSql {
    pub(crate) dialect: Dialect,
    /// The name of the table.
    pub(crate) table: String,
    pub(crate) id: String,
    /// The type of the key, which matters on PostgreSQL.
    pub(crate) id_type: String,
    pub(crate) id_form: KeyForm,
    /// The column whose values define the order of a walk. On SQLite it is usually SQLite's own row id: an index on
    /// the status contains rows in that order, and consecutive rows share pages. With random keys, each row would
    /// need a page of its own to read and to write.
    pub(crate) position: String,
    /// The user's id on `v` as text, or null.
    pub(crate) user_id: String,
    pub(crate) user_id_form: KeyForm,
    /// Key, provider id and user of a row as texts, for RETURNING, where SQLite does not know the alias of a table.
    pub(crate) returned: String,
    /// The provider's id as text.
    pub(crate) provider_id: String,
    /// The same for comparison with texts, by an index if there is one.
    pub(crate) provider_key: String,
    pub(crate) status: String,
    /// If this or the next column is missing, completions are stored in voice-sync's own table.
    pub(crate) preview_url: Option<String>,
    pub(crate) completed_at: Option<String>,
    /// When the row was created, and when it was completed before, as moments, or null.
    pub(crate) created_at: String,
    pub(crate) completed_before: String,
    pub(crate) processing: String,
    pub(crate) completed: String,
    pub(crate) failed: String,
    /// The current time, in the form of the column `completed_at`.
    pub(crate) completed_now: String,
    /// The maximum length of a preview in characters; `None` is any length.
    pub(crate) preview_room: Option<usize>,
    /// Whether rows show the transaction that wrote them (`xmin`).
    pub(crate) has_row_versions: bool,
    /// Optional columns that the table does not have.
    pub(crate) missing_columns: Vec<MissingColumn>,
    /// Whether voice-sync's own tables exist.
    pub(crate) has_own_tables: bool,
}

impl KeyForm {
    /// A stored key in the form of events. A value that is not a UUID is not changed.
    pub(crate) fn read(self, stored: &str) -> String {
        match self {
            Self::Plain => stored.to_owned(),
            Self::BareUuid => Uuid::parse_str(stored)
                .map_or_else(|_| stored.to_owned(), |uuid| uuid.hyphenated().to_string()),
        }
    }
}

impl TableSql {
    /// The key of the row `v` as text.
    pub(crate) fn row_id(&self) -> String {
        format!("CAST(v.{} AS text)", self.id)
    }

    pub(crate) fn is_processing(&self) -> String {
        format!("v.{} = {}", self.status, self.processing)
    }

    pub(crate) fn keeps_completions(&self) -> bool {
        self.preview_url.is_none() || self.completed_at.is_none()
    }

    /// The notes about voices; none if voice-sync has no tables yet.
    pub(crate) fn known(&self) -> String {
        const NOTHING: &str = "
            (SELECT CAST(NULL AS text) AS row_id, CAST(NULL AS text) AS provider_id,
                    CAST(NULL AS timestamptz) AS first_seen, CAST(NULL AS timestamptz) AS restarted_at,
                    CAST(NULL AS uuid) AS run_id, CAST(NULL AS timestamptz) AS last_asked,
                    CAST(NULL AS text) AS kind, CAST(NULL AS text) AS stage,
                    CAST(NULL AS integer) AS missing_count, CAST(NULL AS timestamptz) AS missing_since,
                    CAST(NULL AS integer) AS strikes, CAST(NULL AS timestamptz) AS set_aside_until,
                    CAST(NULL AS text) AS trouble, CAST(NULL AS timestamptz) AS failed_at,
                    CAST(NULL AS text) AS failure, CAST(NULL AS timestamptz) AS next_due,
                    CAST(NULL AS timestamptz) AS scheduled_at, CAST(NULL AS boolean) AS isolated,
                    CAST(NULL AS integer) AS unanswered, CAST(NULL AS timestamptz) AS unanswered_since)";
        match self.has_own_tables {
            true => self.dialect.own("voices"),
            false => NOTHING.to_owned(),
        }
    }

    /// Whether `w` is about an earlier clone, or an earlier time in processing.
    pub(crate) fn is_restarted(provider_id: &str) -> String {
        format!(
            "(w.row_id IS NOT NULL AND (w.provider_id IS DISTINCT FROM {provider_id} OR w.failed_at IS NOT NULL))"
        )
    }

    /// Whether `w` is about this clone, in processing.
    pub(crate) fn is_current(provider_id: &str) -> String {
        format!(
            "(w.row_id IS NOT NULL AND w.failed_at IS NULL AND w.provider_id IS NOT DISTINCT FROM {provider_id})"
        )
    }

    /// When a row was created or cloned again: the later of its creation and its previous completion. A time in the
    /// future cannot be the start of an age.
    pub(crate) fn made_at(&self) -> String {
        let past = |moment: &str| {
            format!(
                "CASE WHEN {moment} <= {} THEN {moment} END",
                self.dialect.now()
            )
        };
        let (created, completed) = (past(&self.created_at), past(&self.completed_before));
        self.dialect.greatest(&created, &completed)
    }

    /// Seconds in processing: since the row was created or put back, or else since it was first seen.
    pub(crate) fn age(&self, made_at: &str, is_restarted: &str) -> String {
        let now = self.dialect.now();
        let since = self.dialect.greatest(made_at, "w.restarted_at");
        let since = self.dialect.since(&format!(
            "CASE WHEN {is_restarted} THEN {now} ELSE COALESCE({since}, w.first_seen, {now}) END"
        ));
        self.dialect.greatest("0.0", &since)
    }

    /// Seconds since the row was first seen in processing with this provider id.
    pub(crate) fn witnessed(&self, is_restarted: &str) -> String {
        let now = self.dialect.now();
        let since = self.dialect.greatest("w.first_seen", "w.restarted_at");
        let since = self.dialect.since(&format!(
            "CASE WHEN {is_restarted} THEN {now} ELSE COALESCE({since}, {now}) END"
        ));
        self.dialect.greatest("0.0", &since)
    }

    pub(crate) fn is_set_aside(&self) -> String {
        self.dialect.is_ahead("w.set_aside_until", SET_ASIDE)
    }

    /// Whether a voice is due at a later time.
    pub(crate) fn is_scheduled(&self) -> String {
        format!(
            "CASE WHEN w.isolated THEN {} ELSE {} END",
            self.dialect.is_ahead("w.next_due", MAX_ISOLATED_SCHEDULE),
            self.dialect.is_ahead("w.next_due", MAX_SCHEDULE)
        )
    }

    /// Whether a voice is quarantined: it cannot be looked up, and is not due yet.
    pub(crate) fn is_quarantined(&self) -> String {
        let is_scheduled = self.dialect.is_ahead("w.next_due", MAX_ISOLATED_SCHEDULE);
        format!("COALESCE(w.isolated AND w.unanswered > 1 AND {is_scheduled}, FALSE)")
    }

    /// A value of the nudge of a voice, as text.
    pub(crate) fn nudge(&self, provider_id: &str, column: &str) -> String {
        match self.has_own_tables {
            true => format!(
                "(SELECT g.{column} FROM {} g WHERE g.provider_id = {provider_id})",
                self.dialect.own("nudges")
            ),
            false => "CAST(NULL AS text)".to_owned(),
        }
    }

    /// Whether a process other than the run with this id has leased the voice with this key. An earlier version,
    /// which may still be running, stores its leases in `voices`.
    pub(crate) fn is_leased(&self, row_id: &str, but_to: Option<&str>) -> String {
        if !self.has_own_tables {
            return "FALSE".to_owned();
        }
        let is_leased = |lease: &str| {
            let other = but_to.map(|run_id| format!(" AND {lease}.run_id <> {run_id}"));
            let is_ahead = self
                .dialect
                .is_ahead(&format!("{lease}.lease_until"), LEASE);
            format!("{is_ahead}{}", other.unwrap_or_default())
        };
        format!(
            "({row_id} IN ({}) OR {})",
            self.dialect.leased_voices(&is_leased("l")),
            is_leased("w")
        )
    }

    /// Whether another run's lease on the voice with this key has expired.
    pub(crate) fn was_leased(&self, row_id: &str, run_id: &str) -> String {
        if !self.has_own_tables {
            return "FALSE".to_owned();
        }
        let is_over = format!(
            "l.run_id <> {run_id} AND NOT {}",
            self.dialect.is_ahead("l.lease_until", LEASE)
        );
        format!("{row_id} IN ({})", self.dialect.leased_voices(&is_over))
    }

    /// The value that keys are compared with, by index: the column itself, if a text can be cast to its type.
    pub(crate) fn key(&self) -> String {
        match self.dialect {
            Dialect::Postgres if !is_castable(&self.id_type) => self.row_id(),
            Dialect::Postgres | Dialect::Sqlite => format!("v.{}", self.id),
        }
    }

    /// The type of [`Self::key`] on PostgreSQL.
    pub(crate) fn key_type(&self) -> String {
        match is_castable(&self.id_type) {
            true => self.id_type.clone(),
            false => "text".to_owned(),
        }
    }

    /// A key in the forms that the column may contain: none, if it cannot be a key; on SQLite, there may be several.
    ///
    /// On SQLite it is compared by expressions without an affinity of their own, so that the affinity of the column
    /// applies: text for `CHAR(32)`, integer for `INTEGER`.
    pub(crate) fn keys(&self, key: &str) -> Vec<String> {
        match self.dialect {
            Dialect::Postgres if could_be(key, &self.id_type) => vec![key.to_owned()],
            Dialect::Postgres => Vec::new(),
            Dialect::Sqlite => forms(key).collect(),
        }
    }

    /// Whether the row `v` has one of these keys.
    pub(crate) fn has_key(&self, args: &mut Args, keys: &[String]) -> String {
        let keys: Vec<String> = keys.iter().flat_map(|key| self.keys(key)).collect();
        format!("{} {}", self.key(), args.is_any(&self.key_type(), &keys))
    }

    /// Whether `w` has the notes about the row `v`. There may be notes about rows of another table, whose keys may
    /// have another type.
    pub(crate) fn is_row_of_own(&self) -> String {
        let Self { id, id_type, .. } = self;
        if self.dialect == Dialect::Sqlite {
            return format!("v.{id} = +w.row_id");
        }
        let digits = |least: i64, most: i64| {
            format!(
                "CASE WHEN w.row_id ~ '^-?[0-9]{{1,19}}$' THEN
                     CASE WHEN w.row_id::numeric BETWEEN {least} AND {most} THEN w.row_id::{id_type} END END"
            )
        };
        let key = match id_type.as_str() {
            "uuid" => "CASE WHEN w.row_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN w.row_id::uuid END".to_owned(),
            "bigint" => digits(i64::MIN, i64::MAX),
            "integer" => digits(i32::MIN.into(), i32::MAX.into()),
            "smallint" => digits(i16::MIN.into(), i16::MAX.into()),
            other if is_castable(other) => format!("w.row_id::{other}"),
            _ => return format!("v.{id}::text = w.row_id"),
        };
        format!("v.{id} = {key}")
    }

    /// Whether an event of the outbox `o` is about the row `v`. Events have dashes that the column may not have.
    pub(crate) fn is_row_of_event(&self) -> String {
        match self.id_form {
            KeyForm::Plain => format!("o.voice_id = {}", self.row_id()),
            KeyForm::BareUuid => format!("replace(o.voice_id, '-', '') = {}", self.row_id()),
        }
    }

    /// Notes `w`, each with its row `v` in processing if it has the same provider id.
    ///
    /// By index, one row after the other, if a text can be cast to a key: otherwise, PostgreSQL would read and hash
    /// the whole table, even if only the first few rows are needed.
    pub(crate) fn known_in_processing(&self) -> String {
        let (table, own) = (&self.table, self.dialect.own("voices"));
        let is_same = format!(
            "{} AND {} AND {} IS NOT DISTINCT FROM w.provider_id",
            self.is_row_of_own(),
            self.is_processing(),
            self.provider_id
        );
        match self.dialect {
            Dialect::Postgres if is_castable(&self.id_type) => {
                format!(
                    "{own} w CROSS JOIN LATERAL (SELECT FROM {table} v WHERE {is_same} OFFSET 0) v"
                )
            }
            Dialect::Postgres => format!("{own} w JOIN {table} v ON {is_same}"),
            Dialect::Sqlite => format!("{own} w CROSS JOIN {table} v ON {is_same}"),
        }
    }

    /// Whether the row `v` was written since a moment, which is an [`Agenda::version`](super::Agenda); true if rows
    /// do not show it. Transactions that were in progress at that moment count as later.
    pub(crate) fn is_written_since(&self, args: &mut Args, version: &str) -> String {
        if !self.has_row_versions {
            return "TRUE".to_owned();
        }
        let version = args.bind(version);
        format!(
            "age(v.xmin) <= age(((split_part({version}::text, ':', 1)::bigint % 4294967296)::text)::xid)"
        )
    }

    /// Whether the row `v` is selected.
    pub(crate) fn is_selected(&self, args: &mut Args, selection: &Selection) -> String {
        let Self {
            id, provider_key, ..
        } = self;
        let is_named = |args: &mut Args, names: &[String]| {
            let provider_ids = names.iter().filter(|name| !name.contains('\0'));
            format!(
                "({} OR {provider_key} {})",
                self.has_key(args, names),
                args.is_any("text", provider_ids)
            )
        };
        // By key, whatever index the status has: without statistics about a new table, PostgreSQL would compare all
        // voices in processing with all keys.
        let is_processing = match selection {
            Selection::Due { .. } => format!("({}) IS TRUE", self.is_processing()),
            Selection::Range { .. } | Selection::Named(_) | Selection::Hinted { .. } => {
                self.is_processing()
            }
        };
        let ([after, up_to], filter) = match selection {
            Selection::Range {
                after,
                up_to,
                except,
            } => {
                // A row without a provider id cannot have one of these ids.
                let filter = match except.is_empty() {
                    true => String::new(),
                    false => format!(" AND {} IS NOT TRUE", is_named(args, except)),
                };
                ([after.as_ref(), up_to.as_ref()], filter)
            }
            Selection::Named(names) => ([None, None], format!(" AND {}", is_named(args, names))),
            Selection::Hinted { names, after } => (
                [after.as_ref(), None],
                format!(" AND {}", is_named(args, names)),
            ),
            Selection::Due { rows, .. } => {
                ([None, None], format!(" AND {}", self.has_key(args, rows)))
            }
        };
        let mut condition = format!("{is_processing} AND v.{id} IS NOT NULL{filter}");
        for (comparison, position) in [(">", after), ("<=", up_to)] {
            if let Some(position) = position {
                let position = self.bind_key(args, position.as_str());
                condition.push_str(&format!(" AND v.{} {comparison} {position}", self.position));
            }
        }
        condition
    }

    /// A key or position that rows are compared with. Returns its placeholder with a cast.
    pub(crate) fn bind_key(&self, args: &mut Args, key: &str) -> String {
        let key = args.bind(key);
        match self.dialect {
            Dialect::Postgres => format!("({key}::text::{})", self.id_type),
            Dialect::Sqlite => key,
        }
    }

    /// Whether a text can be a position in this table. An earlier version may have stored another kind.
    pub(crate) fn could_be_position(&self, text: &str) -> bool {
        match self.dialect {
            Dialect::Postgres => could_be(text, &self.id_type),
            Dialect::Sqlite => self.position == self.id || text.parse::<i64>().is_ok(),
        }
    }
}

/// Whether [`could_be`] can tell which texts can be cast to this type.
fn is_castable(sql_type: &str) -> bool {
    matches!(
        sql_type,
        "uuid" | "bigint" | "integer" | "smallint" | "text" | "character varying" | "bpchar"
    )
}

/// Whether a text from a user can be a key of this type.
fn could_be(text: &str, sql_type: &str) -> bool {
    match sql_type {
        "uuid" => Uuid::try_parse(text).is_ok_and(|_| !text.starts_with("urn:")),
        "bigint" => text.parse::<i64>().is_ok(),
        "integer" => text.parse::<i32>().is_ok(),
        "smallint" => text.parse::<i16>().is_ok(),
        _ => !text.contains('\0'),
    }
}
