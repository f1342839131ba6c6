//! What the database itself takes for completing voices: by hand, and by voice-sync's operations.

use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::{Connection, Row};
use uuid::Uuid;
use voice_sync::core::transition::{Target, Transition};
use voice_sync::store::{
    Access, ColumnNames, Database, DatabaseUrl, LeasedEvents, NaiveZone, Names, Record, Selection,
    StatusValues, Store, TableName,
};

use crate::contender::{Contender, Lookup, migrate};
use crate::site::{Engine, Site};
use crate::{CONCURRENCY, MANY, pass};

/// Voices of one statement, as in a pass that the database keeps waiting.
const BATCH: u32 = 1000;

/// What PostgreSQL takes for many completions.
pub(crate) async fn show() -> anyhow::Result<()> {
    println!("{MANY} completions on PostgreSQL:");
    let site = Site::new(Engine::Postgres, MANY, Duration::ZERO).await?;
    let by_hand = by_hand(&site).await?;
    site.expect_all_completed().await?;
    site.close().await?;
    let times = |time: Duration| time.as_secs_f64() / by_hand.as_secs_f64();
    println!(
        "one statement, by hand            {:>6.2} s",
        by_hand.as_secs_f64()
    );

    let [claim, apply, mark] = by_operations(Engine::Postgres, MANY).await?;
    let all = claim + apply + mark;
    println!(
        "voice-sync's, one after the other {:>6.2} s   {:.2} times (claim {:.2} s, apply {:.2} s, mark {:.2} s)",
        all.as_secs_f64(),
        times(all),
        claim.as_secs_f64(),
        apply.as_secs_f64(),
        mark.as_secs_f64(),
    );
    for contender in [
        Contender::VoiceSync(Lookup::Batch),
        Contender::Asyncio(Lookup::Batch),
    ] {
        let site = Site::new(Engine::Postgres, MANY, Duration::ZERO).await?;
        let run = pass(contender, site, CONCURRENCY).await?;
        println!(
            "{:<33} {:>6.2} s   {:.2} times, latency 0, the whole process (CPU {:.2} s)",
            contender.to_string(),
            run.wall.as_secs_f64(),
            times(run.wall),
            run.cpu.as_secs_f64(),
        );
    }
    Ok(())
}

fn preview(provider_id: &str) -> String {
    format!(
        "https://storage.googleapis.com/eleven-public-prod/database/user/sim/voices/{provider_id}/preview.mp3"
    )
}

/// One statement that completes all voices and records their events: the answers come in as arrays,
/// as they would from a provider, and nothing else is kept.
pub(crate) async fn by_hand(site: &Site) -> anyhow::Result<Duration> {
    const OUTBOX: &str = "
        CREATE TABLE by_hand (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id uuid NOT NULL,
            event_type text NOT NULL, voice_id text NOT NULL, user_id text,
            occurred_at timestamptz NOT NULL DEFAULT now())";
    const COMPLETE: &str = "
        WITH moved AS (
            UPDATE voices v
            SET status = 'completed', preview_url = a.preview_url,
                completed_at = now() AT TIME ZONE 'UTC'
            FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS a (id, preview_url, event_id)
            WHERE v.id = a.id AND v.status = 'processing'
            RETURNING v.id::text AS voice_id, v.user_id::text AS user_id, a.event_id
        )
        INSERT INTO by_hand (event_id, event_type, voice_id, user_id)
        SELECT event_id, 'voice.created', voice_id, user_id FROM moved";
    let mut connection = site.postgres()?.acquire().await?;
    sqlx::raw_sql(OUTBOX).execute(&mut *connection).await?;
    let rows = sqlx::query("SELECT id, elevenlabs_voice_id FROM voices ORDER BY id")
        .fetch_all(&mut *connection)
        .await?;
    let (mut ids, mut previews, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        ids.push(row.try_get::<Uuid, _>(0)?);
        previews.push(preview(row.try_get(1)?));
        events.push(Uuid::new_v4());
    }
    let began = Instant::now();
    let mut transaction = connection.begin().await?;
    sqlx::query(COMPLETE)
        .bind(ids)
        .bind(previews)
        .bind(events)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(began.elapsed())
}

/// The same on SQLite.
pub(crate) async fn by_hand_on_sqlite(site: &Site) -> anyhow::Result<()> {
    const OUTBOX: &str = "
        CREATE TABLE by_hand (
            id INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL, event_type TEXT NOT NULL,
            voice_id TEXT NOT NULL, user_id TEXT, occurred_at INTEGER NOT NULL);";
    const COMPLETE: &str = "
        UPDATE voices
        SET status = 'completed', completed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
            preview_url = 'https://storage.googleapis.com/eleven-public-prod/database/user/sim/voices/'
                          || elevenlabs_voice_id || '/preview.mp3'
        WHERE status = 'processing'";
    const RECORD: &str = "
        INSERT INTO by_hand (event_id, event_type, voice_id, user_id, occurred_at)
        SELECT lower(hex(randomblob(4)) || '-0000-5000-8000-' || hex(randomblob(6))), 'voice.created', id, user_id,
               unixepoch() * 1000
        FROM voices WHERE status = 'completed'";
    let pool = site.sqlite()?;
    sqlx::raw_sql(OUTBOX).execute(pool).await?;
    let mut transaction = pool.begin().await?;
    sqlx::query(COMPLETE).execute(&mut *transaction).await?;
    sqlx::query(RECORD).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// So many rows and their events by what a pass does: claim, apply, and mark as published, a batch after
/// the other.
pub(crate) async fn by_operations(engine: Engine, voices: u64) -> anyhow::Result<[Duration; 3]> {
    let site = Site::new(engine, voices, Duration::ZERO).await?;
    migrate(&site).await?;
    let url = DatabaseUrl::parse(&site.database_url)?;
    let database = Database::connect(&url, Access::ReadWrite).await?;
    let names = Names {
        table: TableName::parse("voices")?,
        columns: ColumnNames::parse("")?,
        statuses: StatusValues::parse("")?,
        zone: NaiveZone::default(),
    };
    let store = Store::open(database, &names, true, Access::ReadWrite).await?;
    let run_id = Uuid::new_v4();
    let (mut claiming, mut applying, mut marking) = Default::default();
    let mut after = None;
    loop {
        let all = Selection::Range {
            after: after.take(),
            up_to: None,
            except: Vec::new(),
        };
        let page = timed(&mut claiming, store.claim(run_id, &all, BATCH)).await?;
        let transitions: Vec<_> = page
            .voices
            .iter()
            .map(|voice| {
                let provider_id = voice.checked_id().context("a provider id")?;
                Ok(Transition {
                    row: voice.row.clone(),
                    target: Target::Completed {
                        preview_url: Some(preview(provider_id.as_str())),
                    },
                    provider_id: provider_id.into(),
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let applied = timed(
            &mut applying,
            store.apply(run_id, &transitions, Record::ForMe),
        )
        .await?;
        let ids: Vec<_> = applied.events.iter().map(|event| event.id).collect();
        let leased = LeasedEvents::from(applied.events);
        timed(&mut marking, async {
            store.settle_events(&leased, &ids, &[]).await?;
            let leases: Vec<_> = page.lease.into_iter().collect();
            store.end_leases(&leases).await
        })
        .await?;
        after = page.last;
        if after.is_none() {
            break;
        }
    }
    site.expect_all_completed().await?;
    site.close().await?;
    Ok([claiming, applying, marking])
}

async fn timed<T>(spent: &mut Duration, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    *spent += began.elapsed();
    done
}
