//! What voice-sync does, in a few seconds and without a key or a server: `cargo run --example demo`.
//!
//! It starts the simulator, makes an SQLite database with an application's table of voices, and runs
//! passes by the same function as the binary.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voice_sync::core::report::Counts;
use voice_sync::core::verdict::{AgeFrom, OnTimeout, Rules};
use voice_sync::events::publisher::{Kind, Publisher};
use voice_sync::provider::lookup::Strategy;
use voice_sync::provider::{BaseUrl, Provider};
use voice_sync::store::{
    Access, ColumnNames, Database, DatabaseUrl, NaiveZone, Names, StatusValues, Store, TableName,
};
use voice_sync::sync::{Pass, Scope};
use voice_sync::telemetry::metrics::PassMetrics;
use voice_sync_simulator::{Options, Simulator};

const DIRECTORY: &str = "target/demo";

/// Voices by the fate that their simulated ids tell, with words for people.
const VOICES: [(&str, usize, &str); 11] = [
    ("ready", 120, "instant clones, ready"),
    ("ready2s", 80, "instant clones, ready in 2 s"),
    ("nopreview", 10, "instant clones, no preview yet"),
    ("pvcready", 20, "professional clones, trained"),
    ("pvcready4s", 20, "professional clones, trained in 4 s"),
    ("pvctraining", 15, "professional clones, in training"),
    ("pvcfailed", 10, "professional clones, training failed"),
    ("unverified", 10, "clones that wait for their owner"),
    ("banned", 5, "clones that were banned"),
    ("unlisted", 15, "clones that the list leaves out"),
    ("missing", 5, "clones that the provider does not know"),
];

const TABLE: &str = "CREATE TABLE voices (
    id CHAR(32) NOT NULL PRIMARY KEY,
    user_id CHAR(32) NOT NULL,
    elevenlabs_voice_id VARCHAR(100) NOT NULL UNIQUE,
    name VARCHAR(200) NOT NULL,
    preview_url VARCHAR(1024),
    status VARCHAR(10) NOT NULL DEFAULT 'processing',
    created_at DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now')),
    completed_at DATETIME
)";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let latency = Duration::from_millis(50);
    let options = Options {
        latency,
        record_requests: false,
        ..Options::default()
    };
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into(), options).await?;
    let path = Path::new(DIRECTORY).join("voices.db");
    let application = make_application(&path).await?;
    fs::copy(&path, Path::new(DIRECTORY).join("yours.db"))?;

    say(&format!(
        "An application has cloned voices and stored them as processing, in {}.",
        path.display()
    ));
    show_statuses(&application).await?;

    let url = DatabaseUrl::parse(&format!("sqlite:///{}", path.display()))?;
    let database = Database::connect(&url, Access::ReadWrite).await?;
    database.migrate().await?;
    let names = Names {
        table: TableName::parse("voices")?,
        columns: ColumnNames::parse("")?,
        statuses: StatusValues::parse("")?,
        zone: NaiveZone::default(),
    };
    let store = Store::open(database, &names, true, Access::ReadWrite).await?;
    let key = "any key will do".to_owned().into();
    let concurrency = NonZeroU32::new(4).context("4 is not 0")?;
    // There is no Redis here: events are recorded with their transitions, and wait for one.
    let publisher = Publisher::new(
        "redis://127.0.0.1:1",
        Kind::Stream { maxlen: 10_000 },
        "events:".to_owned(),
    )?;

    for number in 1..=3 {
        if number > 1 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let provider = Provider::new(BaseUrl::parse(&simulator.url())?, &key, concurrency)?;
        pass(number, &store, &provider, &publisher).await?;
    }

    say("The same table now:");
    show_statuses(&application).await?;
    say(
        "Each transition was committed together with its event. There is no Redis here, so they wait in\nthe outbox; the first of them:",
    );
    for event in store.lease_events(1).await?.events.iter().take(3) {
        println!("  {}", event.body());
    }
    say(&format!(
        "Do the same with the binary, on a copy that nobody has touched:

  cargo run --example simulator          # leave it running, and in another terminal:
  export ELEVENLABS_API_KEY=any ELEVENLABS_BASE_URL=http://127.0.0.1:8900
  export DATABASE_URL=sqlite:///{DIRECTORY}/yours.db
  cargo run -- sync-once --dry-run       # reads and asks, writes nothing
  cargo run -- sync-once
  cargo run -- sync-once --output json   # again: nothing happens twice"
    ));
    simulator.stop().await;
    Ok(())
}

/// A paragraph.
fn say(text: &str) {
    println!("\n{text}\n");
}

async fn make_application(path: &Path) -> anyhow::Result<SqlitePool> {
    let directory = path.parent().context("the path has a directory")?;
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await?;
    let mut transaction = pool.begin().await?;
    sqlx::query(TABLE).execute(&mut *transaction).await?;
    for (fate, count, _) in VOICES {
        for number in 0..count {
            sqlx::query("INSERT INTO voices (id, user_id, elevenlabs_voice_id, name) VALUES ($1, $2, $3, $4)")
                .bind(Uuid::new_v4().simple().to_string())
                .bind(Uuid::new_v4().simple().to_string())
                .bind(format!("sim-{fate}-{number:04}"))
                .bind(format!("Voice {number}"))
                .execute(&mut *transaction)
                .await?;
        }
    }
    transaction.commit().await?;
    Ok(pool)
}

async fn show_statuses(application: &SqlitePool) -> anyhow::Result<()> {
    const STATUSES: [&str; 3] = ["processing", "completed", "failed"];
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT elevenlabs_voice_id, status FROM voices")
            .fetch_all(application)
            .await?;
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    for (id, status) in &rows {
        let fate = id
            .split('-')
            .nth(1)
            .context("the ids of the demo tell their fate")?;
        *counts.entry((fate, status)).or_default() += 1;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "processing", "completed", "failed"]);
    for (fate, _, words) in VOICES {
        let cells = STATUSES.map(|status| match counts.get(&(fate, status)) {
            Some(count) => count.to_string(),
            None => "·".to_owned(),
        });
        table.add_row([words.to_owned()].into_iter().chain(cells));
    }
    let totals =
        STATUSES.map(|status| rows.iter().filter(|(_, s)| s == status).count().to_string());
    table.add_row(["all".to_owned()].into_iter().chain(totals));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    Ok(())
}

async fn pass(
    number: u32,
    store: &Store,
    provider: &Provider,
    publisher: &Publisher,
) -> anyhow::Result<()> {
    let all: usize = VOICES.iter().map(|(_, count, _)| count).sum();
    let bar = ProgressBar::new(all as u64);
    bar.set_style(ProgressStyle::with_template(
        "  {bar:40} {pos} of at most {len} voices, {elapsed}",
    )?);
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let report = Pass {
        store,
        provider,
        publisher: Some(publisher),
        queue: None,
        nudger: None,
        rules: &Rules {
            fail_after: Some(Duration::from_secs(24 * 60 * 60)),
            age_from: AgeFrom::default(),
            on_timeout: OnTimeout::Fail,
            models: None,
        },
        missing_after: Duration::from_secs(15 * 60),
        strategy: Strategy::Auto,
        scope: &Scope::default(),
        stop: &CancellationToken::new(),
        metrics: &PassMetrics::default(),
        observe: &|counts: &Counts| bar.set_position(counts.answered()),
    }
    .run()
    .await;
    bar.finish_and_clear();
    let counts = &report.counts;
    writeln!(
        io::stdout(),
        "Pass {number}: {} voices with {} requests in {} ms: {} completed, {} failed, {} still processing, {} missing.",
        counts.due,
        counts.requests,
        report.duration_ms,
        counts.completed,
        counts.failed,
        counts.processing,
        counts.missing
    )?;
    Ok(())
}
