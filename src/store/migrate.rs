//! The migrations of voice-sync's own tables, and which of them a database has.

use std::borrow::Cow;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType};

use super::{Database, StoreError};

/// `pg_advisory_xact_lock` key: the ASCII bytes of "voicesyn".
const LOCK_KEY: i64 = 0x766f_6963_6573_796e;

/// The version of a migration: the first four digits of its file name.
macro_rules! migration {
    ($version:literal, $file:literal, $database:literal) => {
        Migration::new(
            $version,
            $file[5..].into(),
            MigrationType::Simple,
            include_str!(concat!("../../migrations/", $database, "/", $file, ".sql"))
                .into_sql_str(),
            false,
        )
    };
}

fn for_postgres() -> Vec<Migration> {
    vec![
        migration!(1, "0001_initial", "postgres"),
        migration!(2, "0002_completions", "postgres"),
        migration!(3, "0003_schedule", "postgres"),
        migration!(4, "0004_ledger", "postgres"),
        migration!(5, "0005_isolation", "postgres"),
        migration!(6, "0006_mass_absence", "postgres"),
        migration!(7, "0007_due", "postgres"),
        migration!(8, "0008_batches", "postgres"),
        migration!(9, "0009_unbatched_events", "postgres"),
        migration!(10, "0010_request_budget", "postgres"),
        migration!(11, "0011_hints", "postgres"),
        migration!(12, "0012_nudges", "postgres"),
        migration!(13, "0013_queue_members", "postgres"),
    ]
}

fn for_sqlite() -> Vec<Migration> {
    vec![
        migration!(1, "0001_initial", "sqlite"),
        migration!(2, "0002_completions", "sqlite"),
        migration!(3, "0003_schedule", "sqlite"),
        migration!(4, "0004_ledger", "sqlite"),
        migration!(5, "0005_isolation", "sqlite"),
        migration!(6, "0006_mass_absence", "sqlite"),
        migration!(7, "0007_due", "sqlite"),
        migration!(8, "0008_batches", "sqlite"),
        migration!(9, "0009_unbatched_events", "sqlite"),
        migration!(10, "0010_request_budget", "sqlite"),
        migration!(11, "0011_hints", "sqlite"),
        migration!(12, "0012_nudges", "sqlite"),
        migration!(13, "0013_queue_members", "sqlite"),
    ]
}

/// How a database's own tables compare with what this version needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationState {
    /// They match.
    Current,
    /// They do not exist.
    Absent,
    /// Some migrations are missing.
    Behind {
        /// The newest applied migration.
        found: i64,
        /// The newest migration of this version.
        needed: i64,
    },
    /// They were made by a newer version.
    Ahead {
        /// The newest applied migration.
        found: i64,
    },
}

/// A migration that has not been applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMigration {
    pub version: i64,
    pub name: String,
    /// Its description.
    pub sql: String,
}

impl Database {
    fn migrations(&self) -> Vec<Migration> {
        match self {
            Self::Postgres(_) => for_postgres(),
            Self::Sqlite(_) => for_sqlite(),
        }
    }

    /// The version of voice-sync's own tables that this version needs.
    pub fn newest_migration(&self) -> i64 {
        let versions = self.migrations().into_iter().map(|m| m.version);
        versions.max().unwrap_or(0)
    }

    /// Compares, without writing.
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
        let is_there = self.fetch_one(self.has_migrations().to_owned(), self.args());
        let applied = async {
            match is_there.await?.get("is_there")? {
                true => {
                    let newest = self.fetch_one(self.newest_applied(), self.args()).await?;
                    newest.get_optional("version")
                }
                false => Ok(None),
            }
        };
        match applied.await {
            Err(StoreError::Privilege(message)) => Err(match self {
                Self::Postgres(connections) => {
                    let privileges = "SELECT, INSERT, UPDATE, DELETE";
                    connections.may_not_use("voice_sync", privileges).await?
                }
                Self::Sqlite(_) => StoreError::Privilege(message),
            }),
            applied => applied,
        }
    }

    /// By the catalog: a statement about a table that is not there would be an error in the server's log, and the last
    /// one of its transaction.
    fn has_migrations(&self) -> &'static str {
        match self {
            Self::Postgres(_) => {
                // Not `to_regclass`: within a transaction it may answer from a cache that misses what others committed.
                "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                                WHERE n.nspname = 'voice_sync' AND c.relname = 'migrations') AS is_there"
            }
            Self::Sqlite(_) => {
                "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'voice_sync_migrations') AS is_there"
            }
        }
    }

    fn newest_applied(&self) -> String {
        let migrations = self.dialect().own("migrations");
        format!("SELECT max(version) AS version FROM {migrations} WHERE success")
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

    /// A migration with the statement that records it as applied, so that it can be applied by hand.
    fn whole(&self, migration: &Migration) -> String {
        let Migration {
            version,
            description,
            sql,
            checksum,
            ..
        } = migration;
        let checksum: String = checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        // In voice-sync's own schema or with its prefix, because the application may use sqlx as well.
        let (table, timestamp, binary, now, checksum, schema) = match self {
            Self::Postgres(_) => (
                "voice_sync.migrations",
                "TIMESTAMPTZ",
                "BYTEA",
                "now()",
                format!("decode('{checksum}', 'hex')"),
                // IF NOT EXISTS would need the privilege to create the schema, even if it exists.
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

    /// Applies missing migrations, all or none. Two processes wait for each other.
    ///
    /// sqlx's migrator is not used: its lock outlives a failed migration and blocks the next one, and its prepared
    /// statements outlive it behind a pooler.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let unhurried = format!(
            "SELECT set_config('statement_timeout', '0', TRUE), set_config('lock_timeout', '30s', TRUE),
                    set_config('idle_in_transaction_session_timeout', '0', TRUE);
             SELECT pg_advisory_xact_lock({LOCK_KEY})"
        );
        let mut transaction = self.begin_with(&unhurried).await?;
        let is_there = transaction
            .fetch_one(self.has_migrations().to_owned(), self.args())
            .await?;
        let applied = match is_there.get("is_there")? {
            true => {
                let newest = transaction
                    .fetch_one(self.newest_applied(), self.args())
                    .await?;
                newest.get_optional("version")?
            }
            false => None,
        };
        for PendingMigration { sql, .. } in self.pending_after(applied) {
            transaction.execute_script(sql).await?;
        }
        transaction.commit().await
    }
}
