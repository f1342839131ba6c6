//! Keys, limits, outages, chance and scripts.

use std::time::Duration;

use serde_json::json;
use voice_sync_simulator::{Answer, Options, Outage};

use super::{Api, send};

const ANNA: &str = "/v1/voices/sim-ready-anna";

#[tokio::test]
async fn rejects_requests_without_a_valid_key() {
    for (key, accepts_any) in [(None, true), (Some("right".to_owned()), false)] {
        let api = Api::start(Options {
            key,
            ..Options::default()
        })
        .await;
        let with = |key: &str| send(api.client.get(api.url(ANNA)).header("xi-api-key", key));
        assert_eq!(with("right").await.status, 200);
        assert_eq!(
            with("wrong").await.status,
            if accepts_any { 200 } else { 401 }
        );
        for reply in [with("").await, send(api.client.get(api.url(ANNA))).await] {
            assert_eq!((reply.status, reply.code()), (401, "invalid_api_key"));
            assert!(reply.body["detail"]["message"].is_string());
        }
        let keys: Vec<_> = api
            .simulator
            .requests()
            .iter()
            .map(|seen| seen.has_key)
            .collect();
        assert_eq!(keys, [true, true, false, false]);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_system_busy_above_the_rate_limit() {
    let options = Options {
        rate_limit: Some(2),
        ..Options::default()
    };
    let api = Api::start(options).await;
    assert_eq!(api.get(ANNA).await.status, 200);
    assert_eq!(api.get(ANNA).await.status, 200);
    let busy = api.get(ANNA).await;
    assert_eq!((busy.status, busy.code()), (429, "system_busy"));
    assert_eq!(busy.header("retry-after"), Some("1"));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(api.get(ANNA).await.status, 200);
}

#[tokio::test]
async fn answers_too_many_concurrent_requests_above_the_limit() {
    let options = Options {
        max_concurrent: Some(2),
        latency: Duration::from_secs(3600),
        ..Options::default()
    };
    let api = Api::start(options).await;
    let mut waiting = Vec::new();
    for number in 1..=3 {
        waiting.push(tokio::spawn(api.get(ANNA)));
        api.arrived(number).await;
    }
    // Stopping ends the hour's wait: everything is answered now.
    api.simulator.stop().await;
    let mut statuses = Vec::new();
    for reply in waiting {
        let reply = reply.await.unwrap();
        statuses.push(reply.status);
        assert_eq!(reply.header("maximum-concurrent-requests"), Some("2"));
        let current: u32 = reply
            .header("current-concurrent-requests")
            .unwrap()
            .parse()
            .unwrap();
        assert!(current <= 2);
        if reply.status == 429 {
            assert_eq!(reply.code(), "too_many_concurrent_requests");
        }
    }
    assert_eq!(statuses, [200, 200, 429]);
}

#[tokio::test]
async fn sends_concurrency_headers_only_if_concurrency_is_limited() {
    let limited = Api::start(Options {
        max_concurrent: Some(3),
        ..Options::default()
    })
    .await;
    let reply = limited.get(ANNA).await;
    assert_eq!(reply.header("current-concurrent-requests"), Some("1"));
    assert_eq!(reply.header("maximum-concurrent-requests"), Some("3"));
    let reply = Api::plain().await.get(ANNA).await;
    assert_eq!(reply.header("maximum-concurrent-requests"), None);
}

#[tokio::test(start_paused = true)]
async fn answers_503_only_during_an_outage() {
    let outage: Outage = "10s+5s".parse().unwrap();
    let api = Api::start(Options {
        outages: vec![outage],
        ..Options::default()
    })
    .await;
    let mut statuses = Vec::new();
    for wait in [0, 10, 4, 1] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        statuses.push(api.get(ANNA).await.status);
    }
    assert_eq!(statuses, [200, 503, 503, 200]);
}

#[tokio::test]
async fn same_seed_fails_the_same_requests() {
    async fn statuses(seed: u64) -> Vec<u16> {
        let options = Options {
            error_rate: 0.5,
            seed,
            ..Options::default()
        };
        let api = Api::start(options).await;
        let mut statuses = Vec::new();
        for _ in 0..50 {
            statuses.push(api.get(ANNA).await.status);
        }
        statuses
    }
    let run = statuses(1).await;
    assert_eq!(run, statuses(1).await);
    assert_ne!(run, statuses(2).await);
    assert!(run.contains(&200) && run.iter().any(|status| *status >= 500));
}

#[tokio::test(start_paused = true)]
async fn answers_after_the_configured_latency() {
    let options = Options {
        latency: Duration::from_secs(30),
        jitter: Duration::from_secs(5),
        ..Options::default()
    };
    let api = Api::start(options).await;
    let start = tokio::time::Instant::now();
    assert_eq!(api.get(ANNA).await.status, 200);
    assert!(start.elapsed() >= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn script_overrides_answers_until_it_is_replaced() {
    let api = Api::plain().await;
    api.simulator.script(|request| {
        assert_eq!(request.status, None);
        match request.voice_ids.first()?.as_str() {
            "anna" => Some(Answer::error(403, "no", "No.").with_header("x-why", "script")),
            "bert" => Some(Answer::json(200, "{\"voice_id\":").after(Duration::from_secs(60))),
            "cleo" => Some(Answer::empty(7)),
            _ => None,
        }
    });
    let anna = api.get("/v2/voices?voice_ids=anna").await;
    assert_eq!(
        (anna.status, anna.code(), anna.header("x-why")),
        (403, "no", Some("script"))
    );
    let start = tokio::time::Instant::now();
    let bert = api.get("/v1/voices/bert").await;
    assert!(start.elapsed() >= Duration::from_secs(60));
    assert_eq!((bert.status, bert.body), (200, json!("{\"voice_id\":")));
    // A status that is none: whoever wrote the script is told.
    assert_eq!(api.get("/v1/voices/cleo").await.status, 500);
    assert_eq!(api.get(ANNA).await.status, 200);

    api.simulator.script(|_| None);
    assert_eq!(api.get("/v1/voices/anna").await.code(), "voice_not_found");
    let statuses: Vec<_> = api
        .simulator
        .requests()
        .iter()
        .filter_map(|seen| seen.status)
        .collect();
    assert_eq!(statuses, [403, 200, 500, 200, 400]);
}
