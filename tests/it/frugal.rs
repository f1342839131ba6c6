//! What a pass costs others, as they count it: PostgreSQL its transactions, the provider its requests.

use sqlx::PgPool;

use crate::support::app::{App, NewVoice, Variant};
use crate::support::binary::{VoiceSync, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::simulator;
use crate::support::from_scripts;

/// Each statement of a pass is one transaction, and so is each preparation of a statement that is new to a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_of_100_voices_takes_one_request_and_at_most_6_statements() {
    const BATCHES: i64 = 30;
    let app = App::new(Variant::A).await;
    let voices: Vec<_> = (0..BATCHES * 100)
        .map(|n| NewVoice::processing(format!("sim-ready-{n}")))
        .collect();
    app.insert(&voices).await;
    VoiceSync::new(&["migrate"])
        .env("DATABASE_URL", &app.url)
        .run()
        .await
        .expect_code(0);
    let before = transactions(&app).await;
    let provider = simulator().await;
    let bus = Bus::new().await;
    let ended = sync_once(&app.url, &provider.url())
        .publishing_to(&bus)
        .run()
        .await;
    ended.expect_code(0);
    let statements = transactions(&app).await - before;
    assert_eq!(ended.count("completed"), BATCHES as u64 * 100);
    assert_eq!(ended.count("requests"), BATCHES as u64);
    assert!(statements > BATCHES / 10, "they were not counted");
    assert!(statements <= 6 * BATCHES, "{statements} statements");
}

/// As PostgreSQL counts them, once all sessions of voice-sync are over: that is when they are counted in.
/// Asked from another database, as each question is a transaction, too.
async fn transactions(app: &App) -> i64 {
    let server = PgPool::connect(&from_scripts("VOICE_SYNC_TEST_DATABASE_URL"))
        .await
        .expect("the server answers");
    let (_, database) = app.url.rsplit_once('/').expect("a URL");
    let number = async |sql: &'static str| -> i64 {
        let number = sqlx::query_scalar(sql).bind(database).fetch_one(&server);
        number.await.expect("a number")
    };
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = $1 AND application_name = 'voice-sync'";
    while number(open).await > 0 {
        tokio::task::yield_now().await;
    }
    number("SELECT xact_commit FROM pg_stat_database WHERE datname = $1").await
}
