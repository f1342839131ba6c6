//! An application's database, with the table `voices` in one of the variants that are out there.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;

use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, PgPool, Row as _, SqlitePool};
use tempfile::TempDir;
use uuid::Uuid;
use voice_sync::store::{
    Access, ColumnNames, Database, DatabaseUrl, NaiveZone, Names, StatusValues, Store, TableName,
};

use super::from_scripts;

/// How the application made its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// PostgreSQL: native enum, uuid, timestamps without time zone.
    A,
    /// PostgreSQL: varchar status, no `created_at`.
    B,
    /// PostgreSQL: timestamps with time zone.
    D,
    /// As A, and voice-sync comes by way of PgBouncer in transaction mode.
    Pooled,
    /// SQLite through SQLAlchemy: uuids of 32 characters.
    E32,
    /// SQLite: uuids of 36 characters.
    E36,
}

const A: &str = "
    CREATE TYPE voicestatus AS ENUM ('processing', 'completed', 'failed');
    CREATE TYPE voicevisibility AS ENUM ('private', 'public');
    CREATE TABLE users (id uuid PRIMARY KEY);
    CREATE TABLE voices (
        id uuid PRIMARY KEY,
        user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        elevenlabs_voice_id varchar(100) NOT NULL UNIQUE,
        name varchar(200) NOT NULL,
        language varchar(10) NOT NULL DEFAULT 'en',
        gender varchar(20) NOT NULL DEFAULT 'neutral',
        category varchar(20) NOT NULL DEFAULT 'cloned',
        visibility voicevisibility NOT NULL DEFAULT 'private',
        preview_url varchar(1024),
        status voicestatus NOT NULL DEFAULT 'processing',
        created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
        completed_at timestamp,
        meta_data json
    );
    CREATE INDEX ix_voices_status ON voices (status);";

const B: &str = "
    CREATE TABLE voices (
        id uuid PRIMARY KEY,
        user_id uuid NOT NULL,
        elevenlabs_voice_id varchar(100) NOT NULL UNIQUE,
        name varchar(200) NOT NULL,
        status varchar(20) DEFAULT 'processing',
        preview_url varchar(1024),
        completed_at timestamp
    );
    CREATE INDEX ix_voices_status ON voices (status);";

const D: &str = "
    CREATE TYPE voicestatus AS ENUM ('processing', 'completed', 'failed');
    CREATE TABLE voices (
        id uuid PRIMARY KEY,
        user_id uuid NOT NULL,
        elevenlabs_voice_id varchar(100) NOT NULL UNIQUE,
        name varchar(200) NOT NULL,
        preview_url varchar(1024),
        status voicestatus NOT NULL DEFAULT 'processing',
        created_at timestamptz NOT NULL DEFAULT now(),
        completed_at timestamptz
    );";

pub(crate) fn sqlite_ddl(characters: u8) -> String {
    format!(
        "CREATE TABLE voices (
             id CHAR({characters}) NOT NULL PRIMARY KEY,
             user_id CHAR({characters}) NOT NULL,
             elevenlabs_voice_id VARCHAR(100) NOT NULL UNIQUE,
             name VARCHAR(200) NOT NULL,
             preview_url VARCHAR(1024),
             status VARCHAR(10) NOT NULL DEFAULT 'processing',
             created_at DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now')),
             completed_at DATETIME
         )"
    )
}

/// A voice as the application inserts it.
#[derive(Debug, Clone)]
pub(crate) struct NewVoice {
    pub(crate) id: Uuid,
    pub(crate) user_id: Uuid,
    pub(crate) provider_id: String,
    pub(crate) status: &'static str,
}

impl NewVoice {
    /// In processing, with ids that follow from the provider id.
    pub(crate) fn processing(provider_id: impl Into<String>) -> Self {
        let provider_id = provider_id.into();
        Self {
            id: row_id(&provider_id),
            user_id: user_id(&provider_id),
            provider_id,
            status: "processing",
        }
    }
}

/// The row of a voice made by [`NewVoice::processing`].
pub(crate) fn row_id(provider_id: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, provider_id.as_bytes())
}

/// The user of a voice made by [`NewVoice::processing`].
pub(crate) fn user_id(provider_id: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, provider_id.as_bytes())
}

/// A row, as far as voice-sync may write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) status: String,
    pub(crate) preview_url: Option<String>,
    pub(crate) completed_at: Option<String>,
}

pub(crate) enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// An application's database that lives as long as its test.
pub(crate) struct App {
    pub(crate) variant: Variant,
    pub(crate) pool: Pool,
    /// As the application has it in its environment.
    pub(crate) url: String,
    directory: Option<TempDir>,
    created: Option<(String, String)>,
}

impl App {
    pub(crate) async fn new(variant: Variant) -> Self {
        match variant {
            Variant::A | Variant::Pooled => Self::postgres(variant, A).await,
            Variant::B => Self::postgres(variant, B).await,
            Variant::D => Self::postgres(variant, D).await,
            Variant::E32 => Self::sqlite(variant, &sqlite_ddl(32)).await,
            Variant::E36 => Self::sqlite(variant, &sqlite_ddl(36)).await,
        }
    }

    pub(crate) async fn postgres(variant: Variant, ddl: &str) -> Self {
        Self::on(from_scripts("VOICE_SYNC_TEST_DATABASE_URL"), variant, ddl).await
    }

    /// Variant A on a server of the test's own.
    pub(crate) async fn on_server(server: String) -> Self {
        Self::on(server, Variant::A, A).await
    }

    async fn on(server: String, variant: Variant, ddl: &str) -> Self {
        let name = format!("voice_sync_test_{}", Uuid::new_v4().simple());
        let admin = PgPool::connect(&server).await.expect("the server answers");
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&admin)
            .await
            .expect("the database is made");
        admin.close().await;
        let within = |server: &str| {
            let (base, _) = server.rsplit_once('/').expect("a URL");
            format!("{base}/{name}")
        };
        let url = within(&server);
        let pool = PgPoolOptions::new()
            .idle_timeout(None)
            .max_lifetime(None)
            .max_connections(4)
            .connect(&url)
            .await
            .expect("connects");
        sqlx::raw_sql(AssertSqlSafe(ddl.to_owned()))
            .execute(&pool)
            .await
            .expect("DDL runs");
        let url = match variant {
            Variant::Pooled => within(&from_scripts("VOICE_SYNC_TEST_PGBOUNCER_URL")),
            Variant::A | Variant::B | Variant::D | Variant::E32 | Variant::E36 => url,
        };
        Self {
            variant,
            pool: Pool::Postgres(pool),
            url: url.replacen("postgresql://", "postgresql+asyncpg://", 1),
            directory: None,
            created: Some((server, name)),
        }
    }

    pub(crate) async fn sqlite(variant: Variant, ddl: &str) -> Self {
        Self::sqlite_in(TempDir::new().expect("a directory"), variant, ddl).await
    }

    /// In a directory of the caller's choice.
    pub(crate) async fn sqlite_in(directory: TempDir, variant: Variant, ddl: &str) -> Self {
        let path = directory.path().join("app.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let pool = SqlitePoolOptions::new()
            .idle_timeout(None)
            .max_lifetime(None)
            .max_connections(1)
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .expect("opens");
        sqlx::raw_sql(AssertSqlSafe(ddl.to_owned()))
            .execute(&pool)
            .await
            .expect("DDL runs");
        Self {
            variant,
            pool: Pool::Sqlite(pool),
            url: format!("sqlite+aiosqlite:///{}", path.display()),
            directory: Some(directory),
            created: None,
        }
    }

    /// Where the file of an SQLite database lies.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.as_ref().expect("only SQLite has one").path()
    }

    /// A key as this variant's columns hold it.
    pub(crate) fn stored(&self, id: Uuid) -> String {
        match self.variant {
            Variant::E32 => id.simple().to_string(),
            Variant::A | Variant::B | Variant::D | Variant::Pooled | Variant::E36 => {
                id.hyphenated().to_string()
            }
        }
    }

    pub(crate) async fn insert(&self, voices: &[NewVoice]) {
        let rows: Vec<_> = voices
            .iter()
            .map(|voice| {
                json!({"id": self.stored(voice.id), "user_id": self.stored(voice.user_id),
                       "elevenlabs_voice_id": voice.provider_id, "name": voice.provider_id,
                       "status": voice.status})
            })
            .collect();
        let rows = json!(rows);
        match &self.pool {
            Pool::Postgres(pool) => {
                if matches!(self.variant, Variant::A | Variant::Pooled) {
                    let users = "INSERT INTO users SELECT DISTINCT (value ->> 'user_id')::uuid
                                 FROM jsonb_array_elements($1) ON CONFLICT DO NOTHING";
                    sqlx::query(users)
                        .bind(&rows)
                        .execute(pool)
                        .await
                        .expect("users are inserted");
                }
                let status = if self.variant == Variant::B {
                    "varchar"
                } else {
                    "voicestatus"
                };
                let sql = format!(
                    "INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
                     SELECT (value ->> 'id')::uuid, (value ->> 'user_id')::uuid,
                            value ->> 'elevenlabs_voice_id', value ->> 'name',
                            (value ->> 'status')::{status}
                     FROM jsonb_array_elements($1)"
                );
                sqlx::query(AssertSqlSafe(sql))
                    .bind(&rows)
                    .execute(pool)
                    .await
                    .expect("rows are inserted");
            }
            Pool::Sqlite(pool) => {
                let sql = "INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
                           SELECT value ->> 'id', value ->> 'user_id', value ->> 'elevenlabs_voice_id',
                                  value ->> 'name', value ->> 'status' FROM json_each($1)";
                sqlx::query(sql)
                    .bind(rows.to_string())
                    .execute(pool)
                    .await
                    .expect("rows are inserted");
            }
        }
    }

    /// Voices in processing, by their provider ids.
    pub(crate) async fn insert_processing(&self, provider_ids: &[&str]) {
        let voices: Vec<_> = provider_ids
            .iter()
            .copied()
            .map(NewVoice::processing)
            .collect();
        self.insert(&voices).await;
    }

    /// Runs SQL as the application, or as time itself, would.
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.pool {
            Pool::Postgres(pool) => {
                sqlx::raw_sql(sql).execute(pool).await.expect("runs");
            }
            Pool::Sqlite(pool) => {
                sqlx::raw_sql(sql).execute(pool).await.expect("runs");
            }
        }
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.pool {
            Pool::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.expect("runs"),
            Pool::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.expect("runs"),
        }
    }

    /// A table of voice-sync's own.
    pub(crate) fn own(&self, table: &str) -> String {
        match self.pool {
            Pool::Postgres(_) => format!("voice_sync.{table}"),
            Pool::Sqlite(_) => format!("voice_sync_{table}"),
        }
    }

    /// Lets time pass for voice-sync's own tables: every moment in them moves into the past; or into the future,
    /// as if the database's clock had been set back.
    pub(crate) async fn age_own_tables(&self, seconds: impl Into<i64>) {
        let seconds = seconds.into();
        for (table, columns) in [
            (
                "voices",
                &[
                    "lease_until",
                    "first_seen",
                    "restarted_at",
                    "last_asked",
                    "missing_since",
                    "set_aside_until",
                    "failed_at",
                    "next_due",
                    "hinted_at",
                    "scheduled_at",
                    "unanswered_since",
                ][..],
            ),
            // Not `occurred_at`: it is in the event itself, which is the same whenever it is published.
            ("outbox", &["leased_until"]),
            ("leases", &["lease_until"]),
            ("queue_members", &["noticed_at"]),
            ("nudges", &["nudged_at", "answered_at"]),
            ("batches", &["leased_until", "published_at"]),
            ("runs", &["started_at", "finished_at"]),
            ("buses", &["retry_at"]),
            (
                "provider",
                &[
                    "found_at",
                    "open_until",
                    "probe_until",
                    "hold_until",
                    "next_request_at",
                    "nudging_stopped_until",
                ],
            ),
        ] {
            let changes: Vec<_> = columns
                .iter()
                .map(|column| match self.pool {
                    Pool::Postgres(_) => {
                        format!("{column} = {column} - interval '{seconds} seconds'")
                    }
                    Pool::Sqlite(_) => format!("{column} = {column} - {seconds} * 1000"),
                })
                .collect();
            // A voice-sync that is running locks the same rows in another order.
            let alone = match self.pool {
                Pool::Postgres(_) => format!("LOCK TABLE {} IN EXCLUSIVE MODE;", self.own(table)),
                Pool::Sqlite(_) => String::new(),
            };
            self.execute(&format!(
                "{alone} UPDATE {} SET {}",
                self.own(table),
                changes.join(", ")
            ))
            .await;
        }
    }

    /// Lets time pass for the application's own table.
    pub(crate) async fn age_application(&self, seconds: u32) {
        let columns: &[&str] = match self.variant {
            Variant::B => &["completed_at"],
            Variant::A | Variant::D | Variant::Pooled | Variant::E32 | Variant::E36 => {
                &["created_at", "completed_at"]
            }
        };
        let changes: Vec<_> = columns
            .iter()
            .map(|column| match self.pool {
                Pool::Postgres(_) => format!("{column} = {column} - interval '{seconds} seconds'"),
                Pool::Sqlite(_) => format!(
                    "{column} = strftime('%Y-%m-%d %H:%M:%f000', {column}, '-{seconds} seconds')"
                ),
            })
            .collect();
        self.execute(&format!("UPDATE voices SET {}", changes.join(", ")))
            .await;
    }

    /// Lets time pass for the schedule alone.
    pub(crate) async fn age_schedule(&self, seconds: u32) {
        let (voices, past) = (
            self.own("voices"),
            match self.pool {
                Pool::Postgres(_) => format!("interval '{seconds} seconds'"),
                Pool::Sqlite(_) => format!("{seconds} * 1000"),
            },
        );
        self.execute(&format!(
            "UPDATE {voices} SET next_due = next_due - {past}, scheduled_at = scheduled_at - {past}"
        ))
        .await;
    }

    /// All rows, by provider id.
    pub(crate) async fn rows(&self) -> BTreeMap<String, Row> {
        let sql = "SELECT elevenlabs_voice_id, CAST(status AS text) AS status, preview_url,
                          CAST(completed_at AS text) AS completed_at FROM voices";
        macro_rules! read {
            ($pool:expr) => {
                sqlx::query(sql)
                    .fetch_all($pool)
                    .await
                    .expect("rows are read")
                    .iter()
                    .map(|row| {
                        let read = Row {
                            status: row.get("status"),
                            preview_url: row.get("preview_url"),
                            completed_at: row.get("completed_at"),
                        };
                        (row.get("elevenlabs_voice_id"), read)
                    })
                    .collect()
            };
        }
        match &self.pool {
            Pool::Postgres(pool) => read!(pool),
            Pool::Sqlite(pool) => read!(pool),
        }
    }

    pub(crate) async fn row(&self, provider_id: &str) -> Row {
        self.rows()
            .await
            .remove(provider_id)
            .unwrap_or_else(|| panic!("there is no {provider_id}"))
    }

    /// voice-sync's store on this database, migrated.
    pub(crate) async fn store(&self) -> Store {
        self.store_named("voices", "", "").await
    }

    pub(crate) async fn store_named(&self, table: &str, columns: &str, statuses: &str) -> Store {
        let names = Names {
            table: TableName::parse(table).expect("a name"),
            columns: ColumnNames::parse(columns).expect("names"),
            statuses: StatusValues::parse(statuses).expect("values"),
            zone: NaiveZone::default(),
        };
        let url = DatabaseUrl::parse(&self.url).expect("a URL");
        let database = Database::connect(&url, Access::ReadWrite)
            .await
            .expect("connects");
        database.migrate().await.expect("migrates");
        Store::open(database, &names, true, Access::ReadWrite)
            .await
            .expect("opens")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let Some((server, name)) = self.created.take() else {
            return;
        };
        // Dropping a database needs a runtime, and a test's own is on its way out here.
        let dropping = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let admin = PgPool::connect(&server).await?;
                let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                sqlx::query(AssertSqlSafe(sql)).execute(&admin).await
            })?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
        if let Ok(Err(error)) = dropping.join() {
            eprintln!("a test's database stays behind: {error}");
        }
    }
}
