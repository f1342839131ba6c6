//! Opening the database of a command.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::core::exit::{Exit, Failed};
use crate::store::{Access, Database, DatabaseUrl, MigrationState, Names, Store, StoreError};

/// More than the longest statement of a start, a migration that waits for another, needs.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A database error, with which database it is.
pub(super) fn at(url: &DatabaseUrl) -> impl Fn(StoreError) -> Failed + '_ {
    move |error| Failed {
        exit: error.exit(),
        message: anyhow::Error::from(error).context(url.to_string()),
    }
}

/// Bounds what a command does with its database before its work begins, or, for `migrate`, all of it.
/// A server that takes connections and then says nothing would never be noticed else.
pub(super) async fn in_time<T>(
    url: &DatabaseUrl,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    timeout(COMMAND_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(Failed {
            exit: Exit::Database,
            message: anyhow!(
                "the {url} did not answer within {} s",
                COMMAND_TIMEOUT.as_secs()
            ),
        })
    })
}

/// What is to be done about voice-sync's own tables before a command can work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnTables {
    There,
    /// Nothing either: who only reads can do without.
    Unneeded,
    /// They are made, or brought up to date.
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
        // A first dry run leaves no trace.
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

/// Connects, and makes sure that voice-sync's own tables are as this version needs them.
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
        // The table is looked at first: a database that does not fit is left as it is.
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
