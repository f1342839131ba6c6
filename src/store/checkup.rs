//! What `voice-sync doctor` says of a database, in the words that both kinds share.

use std::time::Duration;

use super::table::{NaiveZone, Names, literal};
use super::{Backend, Database, Store, StoreError, sqlite};
use crate::finding::Finding;

/// Clocks that are further apart than this are said to be.
pub(super) const CLOCKS_APART: Duration = Duration::from_secs(2);
/// Rows that are made so far in the future are of another zone, or of another clock.
const CLOCKS_AHEAD: Duration = Duration::from_secs(60);
/// No two zones are closer together that are not the same.
const ZONES_APART: Duration = Duration::from_secs(15 * 60);
/// So many rows, first seen later than others, tell how soon they are seen.
const TELLING: i64 = 3;
/// A table with fewer rows needs no index to find the voices in processing.
pub(super) const SMALL_TABLE: u32 = 10_000;

impl Database {
    /// What kind of database it is, and whether it can be worked with.
    pub async fn checkup(&self) -> Result<Finding, StoreError> {
        match self {
            Self::Postgres(sessions) => sessions.checkup().await,
            Self::Sqlite(pool) => sqlite::checkup(pool).await,
        }
    }
}

impl Store {
    /// What could surprise a pass on this table.
    pub async fn checkup(&self, names: &Names, findings: &mut Vec<Finding>) {
        findings.push(self.columns(names));
        findings.extend(self.absent().iter().map(|column| {
            let name = column.name(&names.columns).quoted();
            let says = format!("there is no {name}: {}", column.consequence());
            Finding::doubtful("columns", says, column.advice())
        }));
        match &self.backend {
            Backend::Postgres(store) => store.checkup(names, findings).await,
            Backend::Sqlite(store) => store.checkup(names, findings).await,
        }
    }

    fn columns(&self, names: &Names) -> Finding {
        let room = match self.preview_room() {
            Some(room) => format!("previews of up to {room} characters fit"),
            None => "previews of any length fit".to_owned(),
        };
        let says = format!(
            "table {} has what is needed, and its status knows {}; {room}",
            names.table.quoted(),
            names.statuses.all().join(", ")
        );
        Finding::fine("table", says)
    }
}

/// A check that failed is a finding too, and what was found before it stays.
pub(super) fn found(check: &'static str, result: Result<Finding, StoreError>) -> Finding {
    result.unwrap_or_else(|error| Finding::broken(check, error.exit(), error.to_string()))
}

/// Likewise for what only `doctor` asks: no pass fails because a large table is not counted in time.
pub(super) fn counted(check: &'static str, result: Result<Finding, StoreError>) -> Finding {
    match result {
        Err(StoreError::Contended(reason)) => Finding::doubtful(
            check,
            format!("it took too long to count: {reason}"),
            "a longer statement_timeout of the role would tell; passes do not count",
        ),
        result => found(check, result),
    }
}

/// Whether the database takes the update that a pass makes.
pub(super) fn update(result: Result<(), StoreError>) -> Finding {
    const CHECK: &str = "update";
    match result {
        Ok(()) => Finding::fine(CHECK, "the table takes what a pass writes"),
        Err(error) => Finding::broken(CHECK, error.exit(), error.to_string()),
    }
}

/// Whether a list of values has those that voice-sync writes.
pub(super) fn lists_ours(list: &str, names: &Names) -> bool {
    [&names.statuses.completed, &names.statuses.failed]
        .into_iter()
        .all(|value| list.contains(&literal(value)))
}

pub(super) fn index(rows: u64, serves: bool, advice: String) -> Finding {
    const CHECK: &str = "index";
    match (serves, rows < u64::from(SMALL_TABLE)) {
        (true, _) => Finding::fine(CHECK, "one leads to the voices in processing"),
        (false, true) => Finding::fine(
            CHECK,
            "none leads to the voices in processing, and the table is small",
        ),
        (false, false) => Finding::doubtful(
            CHECK,
            format!("none leads to the voices in processing, among some {rows} rows"),
            advice,
        ),
    }
}

pub(super) fn backlog(voices: u64, oldest: Option<Duration>) -> Finding {
    let since = oldest.filter(|_| voices > 0).map(|oldest| {
        let seconds = Duration::from_secs(oldest.as_secs());
        format!(", the oldest for {}", humantime::format_duration(seconds))
    });
    let says = format!("{voices} voices in processing{}", since.unwrap_or_default());
    Finding::fine("backlog", says)
}

/// What tells in which time zone the application writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Times {
    /// The zone of the database's or a role's settings, where `created_at` has none and its default is the present.
    pub(super) default_in: Option<String>,
    /// How far in the future the newest row of the backlog was made.
    pub(super) ahead: Option<Duration>,
    /// How long rows of the backlog had been there, at least, when voice-sync first saw them: of those that it saw
    /// later than others.
    pub(super) behind: Option<Duration>,
    /// How many these are.
    pub(super) late: i64,
}

pub(super) fn times(times: &Times, zone: &NaiveZone) -> Finding {
    const CHECK: &str = "time zone";
    const ADVICE: &str = "if the application writes times of another zone without saying so, name it with --naive-timezone (PostgreSQL), or \
                          let it write UTC; ages in `status`, and how soon a voice is looked up again, are wrong until then, and verdicts are not";
    let about =
        |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs() / 60 * 60));
    let says = match times {
        Times {
            default_in: Some(other),
            ..
        } => format!(
            "the default of created_at is the present in {other}, and it is read as one in {}",
            zone.as_str()
        ),
        Times {
            ahead: Some(ahead), ..
        } if *ahead >= CLOCKS_AHEAD => {
            format!(
                "the newest voice in processing was made {} in the future",
                about(*ahead)
            )
        }
        Times {
            behind: Some(behind),
            late: TELLING..,
            ..
        } if *behind >= ZONES_APART => format!(
            "every voice was there for {} or longer when voice-sync first saw it",
            about(*behind)
        ),
        Times {
            default_in: None,
            ahead: _,
            behind: _,
            late: _,
        } => {
            return Finding::fine(
                CHECK,
                format!("times without one are read as {}", zone.as_str()),
            );
        }
    };
    Finding::doubtful(CHECK, says, ADVICE)
}

/// `None` where no event was recorded lately, with which completions could be compared.
pub(super) fn second_poller(strangers: Option<u64>) -> Finding {
    const CHECK: &str = "second poller";
    match strangers {
        None => Finding::fine(CHECK, "nothing to tell it by: no event was recorded lately"),
        Some(0) => Finding::fine(CHECK, "nobody else completes voices"),
        Some(voices) => Finding::doubtful(
            CHECK,
            format!("{voices} voices were completed without an event of voice-sync's"),
            "if the application's own polling task still runs, switch it off; runs of voice-sync without a \
             Redis URL leave the same trace",
        ),
    }
}
