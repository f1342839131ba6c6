//! Opens the database of a command.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::core::exit::{Exit, Failed};
use crate::store::{
    Access, Database, DatabaseUrl, MigrationState, Names, STATUS_ADVICE, StatusDoubt, StatusValues,
    Store, StoreError,
};

/// Longer than the longest statement at the start: a migration that waits for another one.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The time limit of a command for the provider's answers, for a person who waits.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);

/// Adds the database's address to a database error.
pub(super) fn at(url: &DatabaseUrl) -> impl Fn(StoreError) -> Failed + '_ {
    move |error| {
        let exit = error.exit();
        Failed::new(exit, anyhow::Error::from(error).context(url.to_string()))
    }
}

/// Limits the time that a command spends on its database before its work begins, or, for `migrate`, in total. Otherwise
/// a server that accepts connections and never answers would block the command forever.
pub(super) async fn in_time<T>(
    url: &DatabaseUrl,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    timeout(COMMAND_TIMEOUT, work).await.unwrap_or_else(|_| {
        let seconds = COMMAND_TIMEOUT.as_secs();
        let message = anyhow!("the {url} did not answer within {seconds} s");
        Err(Failed::new(Exit::Database, message))
    })
}

/// What a command must do about voice-sync's own tables before it can work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnTables {
    There,
    /// Nothing: commands that only read can work without them.
    Unneeded,
    /// Create or update them.
    ToMake,
}

pub(super) fn own_tables(
    database: &Database,
    state: MigrationState,
    auto_migrate: Option<bool>,
    access: Access,
) -> anyhow::Result<OwnTables> {
    let advice = match access {
        Access::ReadWrite => {
            "run `voice-sync migrate` as a role that may create tables, or add --auto-migrate"
        }
        Access::ReadOnly => "run `voice-sync migrate` as a role that may create tables",
    };
    let by_itself = auto_migrate.unwrap_or(match database {
        Database::Sqlite(_) => true,
        Database::Postgres(_) => false,
    });
    match (state, access) {
        (MigrationState::Current, _) => Ok(OwnTables::There),
        (MigrationState::Ahead { found }, _) => Err(anyhow!(
            "voice-sync's own tables are of a newer version ({found}) than this program knows; run the \
             newer voice-sync"
        )),
        // A first dry run creates no tables.
        (MigrationState::Absent, Access::ReadOnly) => Ok(OwnTables::Unneeded),
        (MigrationState::Absent | MigrationState::Behind { .. }, Access::ReadWrite)
            if by_itself =>
        {
            Ok(OwnTables::ToMake)
        }
        (MigrationState::Absent, Access::ReadWrite) => {
            Err(anyhow!("voice-sync's own tables are missing; {advice}"))
        }
        (MigrationState::Behind { found, needed }, _) => Err(anyhow!(
            "voice-sync's own tables are of version {found}, and this program needs version {needed}; {advice}"
        )),
    }
}

/// Connects, and ensures that voice-sync's own tables have the schema of this version.
pub(super) async fn open(
    url: &DatabaseUrl,
    names: &Names,
    auto_migrate: Option<bool>,
    access: Access,
) -> Result<Store, Failed> {
    let at = at(url);
    let mut database = Database::connect(url, access).await.map_err(&at)?;
    let state = database.migration_state().await.map_err(&at)?;
    let own_tables = own_tables(&database, state, auto_migrate, access)
        .with_context(|| url.to_string())
        .map_err(Failed::config)?;
    if own_tables == OwnTables::ToMake {
        // The application's table is checked first, so that a database with a wrong table is not changed.
        let store = Store::open(database, names, false, access)
            .await
            .map_err(&at)?;
        database = store.into_database();
        database.migrate().await.map_err(&at)?;
        info!("created or updated voice-sync's own tables in the {url}");
    }
    let there = own_tables != OwnTables::Unneeded;
    let store = Store::open(database, names, there, access)
        .await
        .map_err(at)?;
    for column in store.missing_columns() {
        let name = column.name(&names.columns).as_str();
        warn!(
            column = name,
            "there is no such column: {}",
            column.consequence()
        );
    }
    Ok(store)
}

/// Configured status values that are probably wrong, judged by a sample of rows.
pub(super) async fn status_doubts(
    store: &Store,
    statuses: &StatusValues,
) -> Result<Vec<StatusDoubt>, StoreError> {
    const SAMPLE: u32 = 500;
    Ok(statuses.doubts(&store.statuses(Some(SAMPLE)).await?))
}

/// Warns of such values. An error or a slow database is not fatal: a pass does not need this.
pub(super) async fn warn_of_statuses(store: &Store, statuses: &StatusValues) {
    const TIME_LIMIT: Duration = Duration::from_secs(5);
    let doubts = timeout(TIME_LIMIT, status_doubts(store, statuses)).await;
    let doubts = doubts.map(Result::unwrap_or_default).unwrap_or_default();
    for doubt in doubts.iter().filter(|doubt| doubt.is_noteworthy()) {
        warn!(
            event = "status_values_doubtful",
            status = doubt.found,
            rows = doubt.rows,
            "{doubt}; {STATUS_ADVICE}"
        );
    }
}
