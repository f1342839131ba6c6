//! What `voice-sync doctor` says of a database, in the words that both kinds share.

use std::time::Duration;

use super::table::{Names, literal};
use super::{Backend, Database, Store, StoreError, sqlite};
use crate::finding::Finding;

/// Clocks that are further apart than this are said to be.
pub(super) const CLOCKS_APART: Duration = Duration::from_secs(2);
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
