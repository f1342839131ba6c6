//! An application's database with voices in processing, as large as a figure needs it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use tempfile::TempDir;
use uuid::Uuid;
use voice_sync_simulator::{Options, Simulator};

/// Which database the application uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Postgres,
    Sqlite,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Sqlite => "SQLite",
        })
    }
}

enum Pool {
    Postgres { pool: PgPool, name: String },
    Sqlite { pool: SqlitePool, _file: TempDir },
}

/// A provider, and an application with voices in processing.
pub(crate) struct Site {
    pub(crate) provider: Simulator,
    /// As the application has it in its environment.
    pub(crate) database_url: String,
    /// A prefix of event streams that no other site has.
    pub(crate) streams: String,
    pool: Pool,
    voices: u64,
}

const POSTGRES_TABLE: &str = "
    CREATE TYPE voicestatus AS ENUM ('processing', 'completed', 'failed');
    CREATE TABLE voices (
        id uuid NOT NULL,
        user_id uuid NOT NULL,
        elevenlabs_voice_id varchar(100) NOT NULL,
        name varchar(200) NOT NULL,
        preview_url varchar(1024),
        status voicestatus NOT NULL DEFAULT 'processing',
        created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
        completed_at timestamp
    );";
/// Of `$1` rows, each `$2`th is in processing.
const POSTGRES_ROWS: &str = "
    INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status, preview_url, completed_at)
    SELECT gen_random_uuid(), gen_random_uuid(), 'sim-ready-' || n, 'Voice ' || n,
           (CASE WHEN n % $2 = 0 THEN 'processing' ELSE 'completed' END)::voicestatus,
           CASE WHEN n % $2 > 0 THEN 'https://example.com/preview.mp3' END,
           CASE WHEN n % $2 > 0 THEN now() AT TIME ZONE 'UTC' END
    FROM generate_series(1, $1) n";
const POSTGRES_KEYS: &str = "
    ALTER TABLE voices ADD PRIMARY KEY (id), ADD UNIQUE (elevenlabs_voice_id)";

const SQLITE_TABLE: &str = "
    CREATE TABLE voices (
        id CHAR(32) NOT NULL PRIMARY KEY,
        user_id CHAR(32) NOT NULL,
        elevenlabs_voice_id VARCHAR(100) NOT NULL UNIQUE,
        name VARCHAR(200) NOT NULL,
        preview_url VARCHAR(1024),
        status VARCHAR(10) NOT NULL DEFAULT 'processing',
        created_at DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now')),
        completed_at DATETIME
    );";
const SQLITE_ROWS: &str = "
    WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < $1)
    INSERT INTO voices (id, user_id, elevenlabs_voice_id, name)
    SELECT lower(hex(randomblob(16))), lower(hex(randomblob(16))), 'sim-ready-' || n, 'Voice ' || n
    FROM numbers";
/// As the server itself does in time.
const VACUUM: &str = "VACUUM ANALYZE voices";
/// On both.
const INDEX: &str = "CREATE INDEX ix_voices_status ON voices (status)";

impl Site {
    /// So many voices are in processing, each of them ready.
    pub(crate) async fn new(
        engine: Engine,
        voices: u64,
        latency: Duration,
    ) -> anyhow::Result<Self> {
        Self::among(engine, voices, voices, latency).await
    }

    /// So many voices are in processing, each of them ready, among so many on PostgreSQL.
    pub(crate) async fn among(
        engine: Engine,
        voices: u64,
        rows: u64,
        latency: Duration,
    ) -> anyhow::Result<Self> {
        let options = Options {
            latency,
            record_requests: false,
            ..Options::default()
        };
        let provider = Simulator::start(([127, 0, 0, 1], 0).into(), options).await?;
        let voices = i64::try_from(voices)?;
        let (pool, database_url) = match engine {
            Engine::Postgres => postgres(voices, i64::try_from(rows)?).await?,
            Engine::Sqlite => sqlite(voices).await?,
        };
        Ok(Self {
            provider,
            database_url,
            streams: format!("bench:{}:", Uuid::new_v4().simple()),
            pool,
            voices: voices.unsigned_abs(),
        })
    }

    /// On PostgreSQL, its table.
    pub(crate) fn postgres(&self) -> anyhow::Result<&PgPool> {
        match &self.pool {
            Pool::Postgres { pool, .. } => Ok(pool),
            Pool::Sqlite { .. } => anyhow::bail!("it is an SQLite"),
        }
    }

    pub(crate) fn sqlite(&self) -> anyhow::Result<&SqlitePool> {
        match &self.pool {
            Pool::Sqlite { pool, .. } => Ok(pool),
            Pool::Postgres { .. } => anyhow::bail!("it is a PostgreSQL"),
        }
    }

    /// Fails where not each voice was completed: a figure of less work is none.
    pub(crate) async fn expect_all_completed(&self) -> anyhow::Result<()> {
        const LEFT: &str =
            "SELECT count(*) FROM voices WHERE status <> 'completed' OR preview_url IS NULL";
        let left: i64 = match &self.pool {
            Pool::Postgres { pool, .. } => sqlx::query_scalar(LEFT).fetch_one(pool).await?,
            Pool::Sqlite { pool, .. } => sqlx::query_scalar(LEFT).fetch_one(pool).await?,
        };
        ensure!(left == 0, "{left} of {} voices were left", self.voices);
        Ok(())
    }

    /// Voices that were completed.
    pub(crate) async fn completed(&self) -> anyhow::Result<u64> {
        const COMPLETED: &str = "SELECT count(*) FROM voices WHERE status = 'completed'";
        let completed: i64 = match &self.pool {
            Pool::Postgres { pool, .. } => sqlx::query_scalar(COMPLETED).fetch_one(pool).await?,
            Pool::Sqlite { pool, .. } => sqlx::query_scalar(COMPLETED).fetch_one(pool).await?,
        };
        Ok(completed.unsigned_abs())
    }

    /// Has nothing in processing any more.
    pub(crate) async fn complete_all(&self) -> anyhow::Result<()> {
        const COMPLETE: &str =
            "UPDATE voices SET status = 'completed', preview_url = 'https://example.com'";
        match &self.pool {
            Pool::Postgres { pool, .. } => {
                sqlx::query(COMPLETE).execute(pool).await?;
                sqlx::query(VACUUM).execute(pool).await?;
            }
            Pool::Sqlite { pool, .. } => {
                sqlx::query(COMPLETE).execute(pool).await?;
            }
        }
        Ok(())
    }

    /// Has no voice due for the next minutes.
    pub(crate) async fn put_off(&self) -> anyhow::Result<()> {
        match &self.pool {
            Pool::Postgres { pool, .. } => {
                sqlx::query("UPDATE voice_sync.voices SET next_due = now() + interval '9 minutes'")
                    .execute(pool)
                    .await?;
                sqlx::query("VACUUM ANALYZE voice_sync.voices")
                    .execute(pool)
                    .await?;
            }
            Pool::Sqlite { pool, .. } => {
                sqlx::query(
                    "UPDATE voice_sync_voices SET next_due = (unixepoch() + 9 * 60) * 1000",
                )
                .execute(pool)
                .await?;
            }
        }
        Ok(())
    }

    /// Gives back what it took.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        self.provider.stop().await;
        match self.pool {
            Pool::Sqlite { pool, .. } => pool.close().await,
            Pool::Postgres { pool, name } => {
                pool.close().await;
                let admin = PgPool::connect(&server()?).await?;
                let drop = format!("DROP DATABASE {name} WITH (FORCE)");
                sqlx::query(AssertSqlSafe(drop)).execute(&admin).await?;
                admin.close().await;
            }
        }
        Ok(())
    }
}

fn server() -> anyhow::Result<String> {
    std::env::var("VOICE_SYNC_TEST_DATABASE_URL")
        .context("there is no PostgreSQL; run: scripts/bench passes")
}

async fn postgres(voices: i64, rows: i64) -> anyhow::Result<(Pool, String)> {
    let server = server()?;
    let name = format!("voice_sync_bench_{}", Uuid::new_v4().simple());
    let admin = PgPool::connect(&server).await?;
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&admin)
        .await?;
    admin.close().await;
    let (base, _) = server.rsplit_once('/').context("a URL with a database")?;
    let url = format!("{base}/{name}");
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect(&url)
        .await?;
    sqlx::raw_sql(POSTGRES_TABLE).execute(&pool).await?;
    sqlx::query(POSTGRES_ROWS)
        .bind(rows)
        .bind(rows / voices.max(1))
        .execute(&pool)
        .await?;
    sqlx::query(POSTGRES_KEYS).execute(&pool).await?;
    sqlx::query(INDEX).execute(&pool).await?;
    sqlx::query(VACUUM).execute(&pool).await?;
    Ok((Pool::Postgres { pool, name }, url))
}

async fn sqlite(voices: i64) -> anyhow::Result<(Pool, String)> {
    let file = TempDir::new()?;
    let path = file.path().join("app.db");
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await?;
    sqlx::query(SQLITE_TABLE).execute(&pool).await?;
    sqlx::query(SQLITE_ROWS).bind(voices).execute(&pool).await?;
    sqlx::query(INDEX).execute(&pool).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&pool)
        .await?;
    let url = format!("sqlite:///{}", path.display());
    Ok((Pool::Sqlite { pool, _file: file }, url))
}
