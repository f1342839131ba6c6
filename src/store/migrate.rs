//! voice-sync's own tables: their migrations, and which of them a database has.

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection, SqlSafeStr};

use super::{Database, StoreError};

/// Where applied migrations are recorded. Not in sqlx's default table, which the application may use.
const POSTGRES_TABLE: &str = "voice_sync.migrations";
const SQLITE_TABLE: &str = "voice_sync_migrations";

/// `pg_advisory_xact_lock` key: the ASCII bytes of "voicesyn".
const LOCK_KEY: i64 = 0x766f_6963_6573_796e;

macro_rules! migration {
    ($version:literal, $name:literal, $database:literal) => {
        Migration::new(
            $version,
            $name.into(),
            MigrationType::Simple,
            include_str!(concat!(
                "../../migrations/",
                $database,
                "/000",
                $version,
                "_",
                $name,
                ".sql"
            ))
            .into_sql_str(),
            false,
        )
    };
}

fn postgres() -> Migrator {
    let mut migrator = Migrator::with_migrations(vec![migration!(1, "initial", "postgres")]);
    migrator.dangerous_set_table_name(POSTGRES_TABLE);
    migrator.create_schema("voice_sync");
    // The session lock that sqlx takes outlives a failed migration, and hangs the next one. Ours
    // ends with its transaction.
    migrator.set_locking(false);
    migrator
}

fn sqlite() -> Migrator {
    let mut migrator = Migrator::with_migrations(vec![migration!(1, "initial", "sqlite")]);
    migrator.dangerous_set_table_name(SQLITE_TABLE);
    migrator
}

/// How a database's own tables compare with what this program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationState {
    /// As needed.
    Current,
    /// None are there.
    Absent,
    /// Some migrations are missing.
    Behind {
        /// The newest applied one.
        found: i64,
    },
    /// Made by a newer version of this program.
    Ahead {
        /// The newest applied one.
        found: i64,
    },
}

/// A migration that has not been applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMigration {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// What it does.
    pub sql: String,
}

impl Database {
    fn migrator(&self) -> Migrator {
        match self {
            Self::Postgres(_) => postgres(),
            Self::Sqlite(_) => sqlite(),
        }
    }

    /// Compares without writing.
    pub async fn migration_state(&self) -> Result<MigrationState, StoreError> {
        let needed = self.migrator().iter().map(|m| m.version).max().unwrap_or(0);
        Ok(match self.applied().await? {
            None => MigrationState::Absent,
            Some(found) if found < needed => MigrationState::Behind { found },
            Some(found) if found > needed => MigrationState::Ahead { found },
            Some(_) => MigrationState::Current,
        })
    }

    async fn applied(&self) -> Result<Option<i64>, StoreError> {
        const POSTGRES: &str = "SELECT max(version) FROM voice_sync.migrations WHERE success";
        const SQLITE: &str = "SELECT max(version) FROM voice_sync_migrations WHERE success";
        let applied = match self {
            Self::Postgres(pool) => sqlx::query_scalar(POSTGRES).fetch_one(pool).await,
            Self::Sqlite(pool) => sqlx::query_scalar(SQLITE).fetch_one(pool).await,
        };
        match applied {
            Ok(version) => Ok(version),
            Err(sqlx::Error::Database(error)) if is_no_such_table(&*error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Migrations that [`Database::migrate`] would apply.
    pub async fn pending_migrations(&self) -> Result<Vec<PendingMigration>, StoreError> {
        let applied = self.applied().await?.unwrap_or(0);
        let mut pending: Vec<_> = self
            .migrator()
            .iter()
            .filter(|migration| migration.version > applied)
            .map(|migration| PendingMigration {
                version: migration.version,
                name: migration.description.to_string(),
                sql: migration.sql.as_str().to_owned(),
            })
            .collect();
        // What sqlx does around them, so that the whole can be applied by hand and is then seen as
        // applied.
        for migration in &mut pending {
            migration.sql.push_str(&self.bookkeeping(migration.version));
        }
        if let (0, Self::Postgres(_), Some(first)) = (applied, self, pending.first_mut()) {
            first
                .sql
                .insert_str(0, "CREATE SCHEMA IF NOT EXISTS voice_sync;\n\n");
        }
        Ok(pending)
    }

    fn bookkeeping(&self, version: i64) -> String {
        let (table, timestamp, binary) = match self {
            Self::Postgres(_) => (POSTGRES_TABLE, "TIMESTAMPTZ", "BYTEA"),
            Self::Sqlite(_) => (SQLITE_TABLE, "TIMESTAMP", "BLOB"),
        };
        let now = match self {
            Self::Postgres(_) => "now()",
            Self::Sqlite(_) => "CURRENT_TIMESTAMP",
        };
        let migrator = self.migrator();
        let migration = migrator.iter().find(|m| m.version == version);
        let Some(migration) = migration else {
            return String::new();
        };
        let hex: String = migration
            .checksum
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let checksum = match self {
            Self::Postgres(_) => format!("'\\x{hex}'"),
            Self::Sqlite(_) => format!("x'{hex}'"),
        };
        format!(
            "\nCREATE TABLE IF NOT EXISTS {table} (\n    version BIGINT PRIMARY KEY,\n    description TEXT NOT NULL,\n    \
             installed_on {timestamp} NOT NULL DEFAULT {now},\n    success BOOLEAN NOT NULL,\n    \
             checksum {binary} NOT NULL,\n    execution_time BIGINT NOT NULL\n);\n\
             INSERT INTO {table} (version, description, success, checksum, execution_time)\n    \
             VALUES ({version}, '{}', TRUE, {checksum}, 0);\n",
            migration.description
        )
    }

    /// Applies what is missing, all of it or nothing. Two at the same time wait for each other.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let migrator = self.migrator();
        let outcome = match self {
            Self::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                sqlx::query(
                    "SELECT set_config('lock_timeout', '30s', true), pg_advisory_xact_lock($1)",
                )
                .bind(LOCK_KEY)
                .execute(&mut *transaction)
                .await?;
                let outcome = migrator.run_direct(None, &mut *transaction, false).await;
                match outcome {
                    Ok(()) => transaction.commit().await.map_err(Into::into),
                    Err(error) => Err(error),
                }
            }
            Self::Sqlite(pool) => {
                let mut connection = pool.acquire().await?;
                let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
                let outcome = migrator.run_direct(None, &mut *transaction, false).await;
                match outcome {
                    Ok(()) => transaction.commit().await.map_err(Into::into),
                    Err(error) => Err(error),
                }
            }
        };
        outcome.map_err(migration_error)
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all but failing SQL say that the migrations do not fit together"
)]
fn migration_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        other => StoreError::Config(format!("voice-sync's own tables: {other}")),
    }
}

fn is_no_such_table(error: &dyn sqlx::error::DatabaseError) -> bool {
    match error.code().as_deref() {
        Some("42P01" | "3F000") => true,
        Some("1") => error.message().starts_with("no such table"),
        Some(_) | None => false,
    }
}
