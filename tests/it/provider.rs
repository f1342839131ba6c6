//! The provider's client against a provider that behaves badly, over real HTTP.

use std::collections::BTreeSet;
use std::io::Write;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use voice_sync::core::lookup::{Lookup, Lookups};
use voice_sync::core::voice::ProviderVoiceId;
use voice_sync::provider::{BaseUrl, Provider, RequestDeadline};
use voice_sync_simulator::{Answer, Options, Simulator};

use crate::support::fates::{simulator, simulator_with};

fn client(url: &str) -> Provider {
    let base = BaseUrl::parse(url).expect("a URL");
    let four = NonZeroU32::new(4).expect("not 0");
    Provider::new(base, &"a key".to_owned().into(), four).expect("a key")
}

fn ids(ids: &[&str]) -> Vec<ProviderVoiceId> {
    ids.iter()
        .map(|id| ProviderVoiceId::parse(id).expect("an id"))
        .collect()
}

async fn look_up(provider: &Provider, asked: &[&str], singly: bool) -> Lookups {
    within(provider, asked, singly, Duration::from_secs(20)).await
}

async fn within(provider: &Provider, asked: &[&str], singly: bool, time: Duration) -> Lookups {
    let stop = CancellationToken::new();
    let patience = RequestDeadline {
        until: Instant::now() + time,
        stop: &stop,
    };
    let lookups = provider.look_up(&ids(asked), singly, patience).await;
    let answered: BTreeSet<_> = lookups.keys().map(ProviderVoiceId::as_str).collect();
    assert_eq!(
        answered,
        asked.iter().copied().collect(),
        "every id has an answer"
    );
    lookups
}

fn kinds(lookups: &Lookups) -> BTreeSet<String> {
    lookups
        .values()
        .map(|lookup| match lookup {
            Lookup::Found { .. } => "found".to_owned(),
            Lookup::Missing => "missing".to_owned(),
            Lookup::Rejected(_) => "rejected".to_owned(),
            Lookup::Unanswerable(trouble) | Lookup::Unavailable(trouble) => {
                trouble.kind.to_string()
            }
        })
        .collect()
}

/// A simulator whose single lookups all answer the same.
async fn always(answer: Answer) -> Simulator {
    let simulator = simulator().await;
    simulator.script(move |_| Some(answer.clone()));
    simulator
}

/// A hundred kilobytes that become a hundred megabytes.
fn gzip_bomb() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..100 {
        encoder
            .write_all(&[b' '; 1024 * 1024])
            .expect("memory takes it");
    }
    encoder.finish().expect("memory takes it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_answers_count_as_unavailable() {
    let huge = vec![b' '; 9 * 1024 * 1024];
    let bomb = Answer {
        body: gzip_bomb(),
        ..Answer::empty(200)
    }
    .with_header("content-encoding", "gzip");
    for (answer, kind) in [
        (Answer::html(200, "hello"), "unreadable"),
        (Answer::empty(200), "unreadable"),
        (Answer::json(200, "{"), "unreadable"),
        (Answer::json(200, "null"), "unreadable"),
        (Answer::json(200, r#"{"voice_id": 7}"#), "unreadable"),
        (
            Answer::json(200, r#"{"voice_id": "another"}"#),
            "unreadable",
        ),
        (
            Answer::json(200, r#"{"voice_id": "a", "preview_url": []}"#),
            "unreadable",
        ),
        (Answer::json(200, huge), "too_large"),
        (bomb, "too_large"),
        (
            Answer::json(200, "x").with_header("content-encoding", "gzip"),
            "broken",
        ),
        (Answer::empty(204), "status"),
        (Answer::html(404, "not here"), "status"),
    ] {
        let simulator = always(answer.clone()).await;
        let lookups = look_up(&client(&simulator.url()), &["a"], true).await;
        let head: Vec<u8> = answer.body.iter().copied().take(40).collect();
        assert_eq!(
            kinds(&lookups),
            BTreeSet::from([kind.to_owned()]),
            "{}",
            String::from_utf8_lossy(&head)
        );
    }
}

/// Nothing is concluded from a proxy's error for later passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_error_does_not_affect_later_passes() {
    for status in [401, 403, 404, 405, 407] {
        let simulator = always(Answer::html(status, "Blocked")).await;
        let provider = client(&simulator.url());
        let lookups = look_up(&provider, &["sim-ready-1", "sim-ready-2"], false).await;
        assert_eq!(kinds(&lookups), BTreeSet::from(["status".to_owned()]));
        assert!(
            !provider.has_no_list(),
            "HTTP {status} says nothing of the list"
        );
        assert_eq!(provider.key_refused(), None, "HTTP {status}");
        simulator.script(|_| None);
        simulator.forget_requests();
        // As a later pass of the same process.
        provider.resume(Default::default());
        let lookups = look_up(&provider, &["sim-ready-1", "sim-ready-2"], false).await;
        assert_eq!(kinds(&lookups), BTreeSet::from(["found".to_owned()]));
        assert_eq!(
            (simulator.counts().list, simulator.counts().single),
            (1, 0),
            "HTTP {status}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_not_followed() {
    let elsewhere = simulator().await;
    for status in [301, 302, 303, 307, 308] {
        let answer = Answer::empty(status).with_header(
            "location",
            &format!("{}/v1/voices/sim-ready-1", elsewhere.url()),
        );
        let simulator = always(answer).await;
        let lookups = look_up(&client(&simulator.url()), &["sim-ready-1"], true).await;
        assert_eq!(kinds(&lookups), BTreeSet::from(["status".to_owned()]));
    }
    assert!(
        elsewhere.requests().is_empty(),
        "neither request nor key got there"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_and_refused_connections_count_as_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("an address");
    let cutting = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let _request = stream.read(&mut [0; 4096]).await;
            let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"voice_id\":";
            let _hung_up = stream.write_all(cut).await;
        }
    });
    let lookups = look_up(&client(&format!("http://{address}")), &["a"], true).await;
    assert_eq!(kinds(&lookups), BTreeSet::from(["broken".to_owned()]));
    cutting.abort();
    let lookups = look_up(&client("http://127.0.0.1:1"), &["a"], true).await;
    assert_eq!(kinds(&lookups), BTreeSet::from(["connect".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookup_ends_at_its_deadline_without_an_answer() {
    let simulator = simulator_with(Options {
        latency: Duration::from_secs(3600),
        ..Options::default()
    })
    .await;
    let lookups = within(
        &client(&simulator.url()),
        &["a", "b"],
        false,
        Duration::from_millis(300),
    )
    .await;
    assert_eq!(kinds(&lookups), BTreeSet::from(["not_asked".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_sent_after_cancellation() {
    let simulator = simulator().await;
    let provider = client(&simulator.url());
    let stop = CancellationToken::new();
    stop.cancel();
    let patience = RequestDeadline {
        until: Instant::now() + Duration::from_secs(60),
        stop: &stop,
    };
    let lookups = provider
        .look_up(&ids(&["sim-ready-1"]), false, patience)
        .await;
    assert_eq!(kinds(&lookups), BTreeSet::from(["not_asked".to_owned()]));
    assert!(simulator.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transient_errors_are_retried() {
    let simulator = simulator().await;
    let seen = AtomicU64::new(0);
    simulator.script(move |_| match seen.fetch_add(1, Ordering::Relaxed) {
        0 => Some(Answer::html(502, "bad gateway")),
        1 => Some(Answer::error(429, "system_busy", "wait").with_header("retry-after-ms", "20")),
        _ => None,
    });
    let provider = client(&simulator.url());
    let lookups = look_up(&provider, &["sim-ready-1"], true).await;
    assert_eq!(kinds(&lookups), BTreeSet::from(["found".to_owned()]));
    // The second one is the request that names no voice and finds out whether the provider works.
    assert_eq!((provider.requests(), provider.retries()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_sent_before_the_end_of_retry_after() {
    let simulator = simulator().await;
    simulator.script(|_| {
        Some(Answer::error(429, "system_busy", "wait").with_header("retry-after", "120"))
    });
    let provider = client(&simulator.url());
    let lookups = look_up(&provider, &["a"], true).await;
    assert_eq!(kinds(&lookups), BTreeSet::from(["throttled".to_owned()]));
    let lookups = look_up(&provider, &["b", "c", "d"], true).await;
    assert_eq!(kinds(&lookups), BTreeSet::from(["not_asked".to_owned()]));
    assert_eq!(simulator.requests().len(), 1);
}

fn page(voices: &[&str], next: Option<&str>) -> Answer {
    let voices: Vec<_> = voices
        .iter()
        .map(|id| serde_json::json!({"voice_id": id, "preview_url": format!("https://x/{id}")}))
        .collect();
    let page = serde_json::json!({"voices": voices, "has_more": next.is_some(), "next_page_token": next, "total_count": 0});
    Answer::json(200, page.to_string())
}

/// A simulator whose list answers this, page by page; beyond them, the last again.
async fn listing(pages: Vec<Answer>) -> Simulator {
    let simulator = simulator().await;
    let asked = AtomicU64::new(0);
    simulator.script(move |request| {
        if request.path != "/v2/voices" {
            return None;
        }
        let number = asked.fetch_add(1, Ordering::Relaxed) as usize;
        Some(pages[number.min(pages.len() - 1)].clone())
    });
    simulator
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_results_are_matched_by_id_in_any_order_or_paging() {
    let asked = ["sim-ready-1", "sim-ready-2", "sim-ready-3"];
    for (what, pages, lists) in [
        (
            "reordered, doubled, among strangers",
            vec![page(
                &["x", asked[2], asked[0], asked[2], "y", asked[1]],
                None,
            )],
            1,
        ),
        (
            "over pages",
            vec![
                page(&["x", asked[1]], Some("t")),
                page(&[asked[0], asked[2]], Some("u")),
            ],
            2,
        ),
        ("endless", vec![page(&["x", asked[1]], Some("t"))], 2),
        ("cut short", vec![page(&[asked[1]], None)], 1),
        (
            "more without a token",
            vec![Answer::json(200, r#"{"voices":[],"has_more":true}"#)],
            1,
        ),
    ] {
        let simulator = listing(pages).await;
        let lookups = look_up(&client(&simulator.url()), &asked, false).await;
        assert_eq!(
            kinds(&lookups),
            BTreeSet::from(["found".to_owned()]),
            "{what}"
        );
        for (id, lookup) in &lookups {
            assert!(
                matches!(lookup, Lookup::Found { voice, .. } if voice.voice_id == id.as_str()),
                "{what}"
            );
        }
        assert_eq!(simulator.counts().list, lists, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voices_on_an_unreadable_page_are_not_missing() {
    let (first, second) = ("sim-ready-1", "sim-ready-2");
    let unreadable = listing(vec![page(&[first], Some("t")), Answer::json(200, "{")]).await;
    let lookups = look_up(&client(&unreadable.url()), &[first, second], false).await;
    assert_eq!(
        kinds(&lookups),
        BTreeSet::from(["found".to_owned()]),
        "asked for singly"
    );

    let down = listing(vec![page(&[first], Some("t")), Answer::html(503, "later")]).await;
    let lookups = look_up(&client(&down.url()), &[first, second], false).await;
    let of = |id: &str| &lookups[&ProviderVoiceId::parse(id).expect("an id")];
    assert!(matches!(of(first), Lookup::Found { listed: true, .. }));
    assert!(matches!(of(second), Lookup::Found { listed: false, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_never_exceed_the_limit() {
    let latency = Duration::from_millis(20);
    let simulator = simulator_with(Options {
        latency,
        max_concurrent: Some(4),
        ..Options::default()
    })
    .await;
    let names: Vec<String> = (0..40).map(|n| format!("sim-ready-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let lookups = look_up(&client(&simulator.url()), &names, true).await;
    assert_eq!(kinds(&lookups), BTreeSet::from(["found".to_owned()]));
    assert!(
        simulator
            .requests()
            .iter()
            .all(|request| request.status == Some(200)),
        "none was one too many"
    );
}
