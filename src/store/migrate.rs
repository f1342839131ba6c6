//! voice-sync's own tables: their migrations, and which of them a database has.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqlSafeStr, SqliteConnection};

use super::{Database, StoreError, postgres};

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

fn for_postgres() -> Vec<Migration> {
    vec![
        migration!(1, "initial", "postgres"),
        migration!(2, "completions", "postgres"),
        migration!(3, "schedule", "postgres"),
        migration!(4, "ledger", "postgres"),
        migration!(5, "isolation", "postgres"),
        migration!(6, "mass_absence", "postgres"),
        migration!(7, "due", "postgres"),
    ]
}

fn for_sqlite() -> Vec<Migration> {
    vec![
        migration!(1, "initial", "sqlite"),
        migration!(2, "completions", "sqlite"),
        migration!(3, "schedule", "sqlite"),
        migration!(4, "ledger", "sqlite"),
        migration!(5, "isolation", "sqlite"),
        migration!(6, "mass_absence", "sqlite"),
        migration!(7, "due", "sqlite"),
    ]
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
        /// The newest that there is.
        needed: i64,
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
    fn migrations(&self) -> Vec<Migration> {
        match self {
            Self::Postgres(_) => for_postgres(),
            Self::Sqlite(_) => for_sqlite(),
        }
    }

    /// The version of voice-sync's own tables that this program needs.
    pub fn newest_migration(&self) -> i64 {
        let versions = self.migrations().into_iter().map(|m| m.version);
        versions.max().unwrap_or(0)
    }

    /// Compares without writing.
    pub async fn migration_state(&self) -> Result<MigrationState, StoreError> {
        let needed = self.newest_migration();
        Ok(match self.applied().await? {
            None => MigrationState::Absent,
            Some(found) if found < needed => MigrationState::Behind { found, needed },
            Some(found) if found > needed => MigrationState::Ahead { found },
            Some(_) => MigrationState::Current,
        })
    }

    async fn applied(&self) -> Result<Option<i64>, StoreError> {
        match self {
            Self::Postgres(sessions) => {
                let mut session = sessions.begin().await?;
                match applied_postgres(&mut session).await {
                    Err(error) if postgres::lacks_privilege(&error) => {
                        drop(session);
                        Err(sessions
                            .may_not_use("voice_sync", "SELECT, INSERT, UPDATE, DELETE")
                            .await?)
                    }
                    Err(error) => Err(error.into()),
                    Ok(applied) => {
                        session.keep().await?;
                        Ok(applied)
                    }
                }
            }
            Self::Sqlite(pool) => applied_sqlite(&mut *pool.acquire().await?).await,
        }
    }

    /// Migrations that [`Database::migrate`] would apply.
    pub async fn pending_migrations(&self) -> Result<Vec<PendingMigration>, StoreError> {
        Ok(self.pending_after(self.applied().await?))
    }

    fn pending_after(&self, applied: Option<i64>) -> Vec<PendingMigration> {
        let newer = |migration: &Migration| migration.version > applied.unwrap_or(0);
        let pending = self.migrations().into_iter().filter(newer);
        pending
            .map(|migration| PendingMigration {
                version: migration.version,
                sql: self.whole(&migration),
                name: migration.description.into_owned(),
            })
            .collect()
    }

    /// A migration with what makes it known as applied, so that a person can apply it by hand.
    fn whole(&self, migration: &Migration) -> String {
        let Migration {
            version,
            description,
            sql,
            checksum,
            ..
        } = migration;
        let checksum: String = checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        // In the schema of our own, or under the prefix, as the application may use sqlx as well.
        let (table, timestamp, binary, now, checksum, schema) = match self {
            Self::Postgres(_) => (
                "voice_sync.migrations",
                "TIMESTAMPTZ",
                "BYTEA",
                "now()",
                format!("decode('{checksum}', 'hex')"),
                // With IF NOT EXISTS it would need the privilege to create one, even where it is there.
                Cow::Borrowed(
                    "DO $$ BEGIN\n    IF to_regnamespace('voice_sync') IS NULL THEN CREATE SCHEMA voice_sync; \
                     END IF;\nEND $$;\n\n",
                ),
            ),
            Self::Sqlite(_) => (
                "voice_sync_migrations",
                "TIMESTAMP",
                "BLOB",
                "CURRENT_TIMESTAMP",
                format!("x'{checksum}'"),
                Cow::default(),
            ),
        };
        format!(
            "{schema}{}\nCREATE TABLE IF NOT EXISTS {table} (\n    version BIGINT PRIMARY KEY,\n    \
             description TEXT NOT NULL,\n    installed_on {timestamp} NOT NULL DEFAULT {now},\n    \
             success BOOLEAN NOT NULL,\n    checksum {binary} NOT NULL,\n    \
             execution_time BIGINT NOT NULL\n);\n\
             INSERT INTO {table} (version, description, success, checksum, execution_time)\n    \
             VALUES ({version}, '{description}', TRUE, {checksum}, 0);\n",
            sql.as_str()
        )
    }

    /// Applies what is missing, all of it or nothing. Two at the same time wait for each other.
    ///
    /// Not by sqlx's migrator: the lock that it takes outlives a failed migration and hangs the next
    /// one, and its prepared statements outlive it behind a pooler.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(sessions) => {
                let mut transaction = sessions.transaction().await?;
                let lock = format!(
                    "SELECT set_config('statement_timeout', '0', TRUE), set_config('lock_timeout', '30s', TRUE);
                     SELECT pg_advisory_xact_lock({LOCK_KEY})"
                );
                transaction
                    .execute(sqlx::raw_sql(AssertSqlSafe(lock)))
                    .await?;
                let mut looking = transaction.begin().await?;
                let applied = applied_postgres(&mut looking).await?;
                looking.rollback().await?;
                for PendingMigration { sql, .. } in self.pending_after(applied) {
                    transaction
                        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
                        .await?;
                }
                Ok(transaction.commit().await?)
            }
            Self::Sqlite(pool) => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                let applied = applied_sqlite(&mut transaction).await?;
                for PendingMigration { sql, .. } in self.pending_after(applied) {
                    transaction
                        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
                        .await?;
                }
                Ok(transaction.commit().await?)
            }
        }
    }
}

/// The newest applied migration. Where there is none, the statement fails, and with it a transaction
/// around it.
async fn applied_postgres(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    // As text, since that needs no prepared statement.
    let ask = sqlx::raw_sql("SELECT max(version)::text FROM voice_sync.migrations WHERE success");
    match connection.fetch_one(ask).await {
        Ok(row) => Ok(row
            .try_get::<Option<String>, _>(0)?
            .and_then(|version| version.parse().ok())),
        Err(sqlx::Error::Database(error)) if is_no_such_table(&*error) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn applied_sqlite(connection: &mut SqliteConnection) -> Result<Option<i64>, StoreError> {
    let ask = sqlx::query_scalar("SELECT max(version) FROM voice_sync_migrations WHERE success");
    match ask.fetch_one(connection).await {
        Ok(version) => Ok(version),
        Err(sqlx::Error::Database(error)) if is_no_such_table(&*error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_no_such_table(error: &dyn sqlx::error::DatabaseError) -> bool {
    match error.code().as_deref() {
        Some("42P01" | "3F000") => true,
        Some("1") => error.message().starts_with("no such table"),
        Some(_) | None => false,
    }
}
