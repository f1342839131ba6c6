//! TLS to the database and to the event bus: it works, and what does not fit is refused.

use crate::support::app::App;
use crate::support::binary::{Ended, sync_once};
use crate::support::fates::simulator;
use crate::support::from_scripts;
use crate::support::server::OwnServers;

async fn pass(database_url: &str, redis: Option<(&str, &str)>) -> Ended {
    let provider = simulator().await;
    let mut command = sync_once(database_url, &provider.url());
    if let Some((url, authority)) = redis {
        command = command
            .env("REDIS_URL", url)
            .env("SSL_CERT_FILE", authority);
    }
    command.run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_is_verified_as_the_url_requires() {
    let servers = OwnServers::with_tls();
    let app = App::on_server(servers.database_url().to_owned()).await;
    app.insert_processing(&["sim-ready-1"]).await;
    drop(app.store().await);
    let ours = servers.told("VOICE_SYNC_TEST_CA");
    let other = servers.told("VOICE_SYNC_TEST_OTHER_CA");
    for (parameters, fits) in [
        ("ssl=require".to_owned(), true),
        (format!("ssl=verify-full&sslrootcert={ours}"), true),
        (format!("sslmode=verify-ca&sslrootcert={ours}"), true),
        (format!("sslmode=verify-full&sslrootcert={other}"), false),
        (format!("ssl=verify-ca&sslrootcert={other}"), false),
        ("ssl=verify-full".to_owned(), false),
    ] {
        let ended = pass(&format!("{}?{parameters}", app.url), None).await;
        assert_eq!(ended.code == 0, fits, "{parameters}: {}", ended.stderr);
        assert!(
            fits || ended.stderr.contains("certificate"),
            "{}",
            ended.stderr
        );
    }
    let localhost = app.url.replace("127.0.0.1", "localhost");
    let named = format!("{localhost}?sslmode=verify-full&sslrootcert={ours}");
    pass(&named, None).await.expect_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejects_a_server_without_tls_if_the_url_requires_it() {
    let app = App::on_server(from_scripts("VOICE_SYNC_TEST_DATABASE_URL")).await;
    drop(app.store().await);
    for parameters in ["ssl=require", "sslmode=verify-full"] {
        let ended = pass(&format!("{}?{parameters}", app.url), None).await;
        ended.expect_code(78);
        assert!(ended.stderr.contains("TLS"), "{}", ended.stderr);
    }
    pass(&format!("{}?ssl=prefer", app.url), None)
        .await
        .expect_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_sent_over_tls_only_to_a_verified_redis() {
    let servers = OwnServers::with_tls();
    let app = App::on_server(servers.database_url().to_owned()).await;
    app.insert_processing(&["sim-ready-1"]).await;
    drop(app.store().await);
    let url = servers.redis_url();
    assert!(
        url.starts_with("rediss://tester:"),
        "with a user and a password"
    );
    let refused = pass(
        &app.url,
        Some((url, servers.told("VOICE_SYNC_TEST_OTHER_CA"))),
    )
    .await;
    refused.expect_code(75);
    assert!(refused.stderr.contains("certificate"), "{}", refused.stderr);
    assert_eq!(refused.count("events_pending"), 1);
    app.age_own_tables(60).await;
    let ended = pass(&app.url, Some((url, servers.told("VOICE_SYNC_TEST_CA")))).await;
    ended.expect_code(0);
    assert_eq!(ended.count("events_published"), 1);
}
