//! The daemon in fair weather, and how it begins and ends. What it does in foul weather is in
//! `tests/faults/daemon.rs`.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use voice_sync_simulator::Options;

use crate::support::app::{App, Pool, Variant};
use crate::support::binary::{KEY, VoiceSync, sync_once};
use crate::support::bus::Bus;
use crate::support::daemon::{Daemon, daemon};
use crate::support::fates::{simulator, simulator_with};

const BOTH: [Variant; 2] = [Variant::A, Variant::E32];

pub(crate) async fn migrated(variant: Variant) -> App {
    let app = App::new(variant).await;
    VoiceSync::new(&["migrate"])
        .env("DATABASE_URL", &app.url)
        .run()
        .await
        .expect_code(0);
    app
}

async fn leases(app: &App) -> i64 {
    let leased = format!(
        "SELECT count(*) FROM {} WHERE lease_until IS NOT NULL",
        app.own("voices")
    );
    app.number(&leased).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_finishes_new_voices_and_stops_on_a_signal() {
    for variant in BOTH {
        let (app, bus, provider) = (migrated(variant).await, Bus::new().await, simulator().await);
        app.insert_processing(&["sim-ready-1", "sim-banned-1", "sim-nopreview-1"])
            .await;
        let mut daemon = Daemon::start(daemon(&app.url, &provider.url()).publishing_to(&bus));
        daemon.wait_until(&app, "processing", 1).await;
        app.insert_processing(&["sim-ready-2", "sim-ready-3"]).await;
        daemon.wait_until(&app, "completed", 3).await;
        daemon.wait_until_answers("/readyz", 200).await;
        daemon.wait_until_answers("/livez", 200).await;
        assert_eq!(daemon.get("/metric").await.0, 404);
        daemon.stop().await;
        assert_eq!(leases(&app).await, 0);
        assert_eq!(bus.events("voice.created").await.len(), 3);
        assert_eq!(bus.events("voice.updated").await.len(), 1);
        assert_eq!(
            daemon.said("WARN").len() + daemon.said("ERROR").len(),
            0,
            "{}",
            daemon.log()
        );
    }
}

/// Voices that may be finished at any moment are looked up as often as the budget allows, by all daemons together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_share_the_request_budget() {
    const REQUESTS: u64 = 8;
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        app.insert_processing(&["sim-nopreview-1", "sim-nopreview-2"])
            .await;
        let daemon = || {
            let daemon =
                VoiceSync::new(&["daemon", "--interval=100ms", "--request-budget=120/min"]);
            let daemon = daemon
                .env("DATABASE_URL", &app.url)
                .env("ELEVENLABS_BASE_URL", provider.url());
            Daemon::start(daemon)
        };
        let began = std::time::Instant::now();
        let mut daemons = [daemon(), daemon()];
        let sent = async || (provider.counts().list >= REQUESTS).then_some(());
        daemons[0].wait_for("some requests", sent).await;
        // Both may send their first one, and others, at the same moment: they pay for it afterwards.
        let allowed = began.elapsed().as_secs_f64() * 2.0 + 3.0;
        let sent = provider.counts();
        assert!(
            (sent.list + sent.single) as f64 <= allowed,
            "{variant:?}: {sent:?}"
        );
        for daemon in &mut daemons {
            daemon.stop().await;
        }
    }
}

/// A pass stores the schedule that the pure function computes, and the daemon looks up no voice before it is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voices_are_looked_up_when_they_are_due() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        app.insert_processing(&["sim-nopreview-1", "sim-unverified-1", "sim-missing-1"])
            .await;
        let due = || sync_once(&app.url, &provider.url()).arg("--due");
        let first = due().run().await;
        first.expect_code(0);
        assert_eq!((first.count("due"), first.count("processing")), (3, 2));
        let seconds = match app.pool {
            Pool::Postgres(_) => "extract(epoch FROM next_due - scheduled_at) * 1000",
            Pool::Sqlite(_) => "next_due - scheduled_at",
        };
        for (id, from, to) in [
            ("sim-nopreview-1", 4500, 5500),
            ("sim-unverified-1", 270_000, 330_000),
            ("sim-missing-1", 270_000, 330_000),
        ] {
            let pause = format!(
                "SELECT CAST({seconds} AS bigint) FROM {} WHERE provider_id = '{id}'",
                app.own("voices")
            );
            let pause = app.number(&pause).await;
            assert!((from..=to).contains(&pause), "{variant:?} {id}: {pause} ms");
        }

        let again = due().run().await;
        again.expect_code(0);
        assert_eq!((again.count("due"), again.count("requests")), (0, 0));

        // One is due: a voice that the list shows rides along, one that it does not would cost.
        app.age_schedule(6).await;
        let topped_up = due().run().await;
        assert_eq!(
            (topped_up.count("due"), topped_up.count("requests")),
            (2, 1)
        );
        app.age_schedule(6).await;
        let alone = due().args(&["--lookup", "single"]).run().await;
        assert_eq!((alone.count("due"), alone.count("requests")), (1, 1));
        app.age_schedule(400).await;
        assert_eq!(due().run().await.count("due"), 3);

        // No schedule reaches as far as that: the database's clock was set back.
        let far = match app.pool {
            Pool::Postgres(_) => {
                "next_due = next_due + interval '1 year', scheduled_at = now() - interval '1 day'"
            }
            Pool::Sqlite(_) => {
                "next_due = next_due + 31536000000, scheduled_at = scheduled_at - 86400000"
            }
        };
        app.execute(&format!("UPDATE {} SET {far}", app.own("voices")))
            .await;
        assert_eq!(due().run().await.count("due"), 3);

        // What was put back, or has a new provider id, is due at once.
        app.execute(
            "UPDATE voices SET elevenlabs_voice_id = 'sim-ready-9'
             WHERE elevenlabs_voice_id = 'sim-unverified-1'",
        )
        .await;
        let anew = due().run().await;
        assert_eq!(anew.count("completed"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_10000_due_voices_are_looked_up_in_one_run() {
    let (app, provider) = (migrated(Variant::E32).await, simulator().await);
    let ids: Vec<String> = (0..10_200).map(|n| format!("sim-nopreview-{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    app.insert_processing(&ids).await;
    let ended = sync_once(&app.url, &provider.url())
        .arg("--due")
        .run()
        .await;
    ended.expect_code(0);
    // On a slow machine, the first ones may be due again before it is done.
    assert!(ended.count("due") >= 10_200);
    assert_eq!(ended.count("requests"), ended.count("due") / 100);
    let asked = format!(
        "SELECT count(*) FROM {} WHERE last_asked IS NOT NULL",
        app.own("voices")
    );
    assert_eq!(app.number(&asked).await, 10_200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_do_not_repeat_lookups() {
    const VOICES: usize = 350;
    const ROUNDS: i64 = 2;
    let requests = async |daemons: usize| {
        let (app, provider) = (migrated(Variant::A).await, simulator().await);
        let ids: Vec<String> = (0..VOICES).map(|n| format!("sim-nopreview-{n}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        app.insert_processing(&ids).await;
        let mut running: Vec<_> = (0..daemons)
            .map(|_| Daemon::start(daemon(&app.url, &provider.url())))
            .collect();
        // Rounds are counted by what was asked, not by the time that it took.
        let asked = "SELECT CAST(COALESCE(sum((counts ->> 'looked_up')::bigint), 0) AS bigint)
                     FROM voice_sync.runs";
        let goal = ROUNDS * VOICES as i64;
        let enough = async || (app.number(asked).await >= goal).then_some(());
        running[0].wait_for("rounds", enough).await;
        join_all(running.iter_mut().map(Daemon::stop)).await;
        let answered = app.number(asked).await;
        let requests = provider.counts().list;
        println!("{daemons} daemons: {requests} requests for {answered} answers");
        requests as f64 / answered as f64
    };
    let (one, two) = (requests(1).await, requests(2).await);
    assert!(
        two <= 2.0 * one,
        "{two} requests an answer, and {one} for a daemon alone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_finishes_requests_in_flight_and_another_continues() {
    const VOICES: usize = 300;
    for variant in BOTH {
        let app = migrated(variant).await;
        let slow = simulator_with(Options {
            latency: Duration::from_secs(1),
            ..Options::default()
        })
        .await;
        let ids: Vec<String> = (0..VOICES).map(|n| format!("sim-ready-{n}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        app.insert_processing(&ids).await;
        let singly = ["--lookup=single", "--concurrency=100"];
        let mut first = Daemon::start(daemon(&app.url, &slow.url()).args(&singly));
        let in_flight = async || (slow.counts().single >= 100).then_some(());
        first.wait_for("100 requests in flight", in_flight).await;
        first.stop().await;
        let answered = slow
            .requests()
            .iter()
            .filter(|request| request.status == Some(200))
            .count();
        let completed = "SELECT count(*) FROM voices WHERE CAST(status AS text) = 'completed'";
        assert!(answered >= 100, "{answered}");
        assert_eq!(app.number(completed).await, answered as i64, "{variant:?}");
        assert_eq!(leases(&app).await, 0, "others need not wait for the rest");

        let fast = simulator().await;
        let mut second = Daemon::start(daemon(&app.url, &fast.url()));
        second.wait_until(&app, "completed", VOICES as i64).await;
        second.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_listens_on_loopback_by_default() {
    let (app, provider) = (migrated(Variant::E32).await, simulator().await);
    for (given, address) in [
        ("0", "127.0.0.1:"),
        (":0", "127.0.0.1:"),
        ("0.0.0.0:0", "0.0.0.0:"),
    ] {
        let mut daemon = Daemon::start(
            VoiceSync::new(&["daemon", "--listen", given])
                .env("DATABASE_URL", &app.url)
                .env("ELEVENLABS_BASE_URL", provider.url()),
        );
        daemon.wait_until_said("listening").await;
        let said = daemon.said("listening")[0]["address"].to_string();
        assert!(said.starts_with(&format!("\"{address}")), "{given}: {said}");
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_signal_stops_the_daemon_at_once() {
    let app = migrated(Variant::A).await;
    app.insert_processing(&["sim-ready-1"]).await;
    let slow = simulator_with(Options {
        latency: Duration::from_secs(600),
        ..Options::default()
    })
    .await;
    let mut daemon = Daemon::start(daemon(&app.url, &slow.url()));
    let in_flight = async || (slow.counts().list > 0).then_some(());
    daemon.wait_for("a request in flight", in_flight).await;
    daemon.signal("-INT");
    daemon.wait_until_said("received a signal").await;
    daemon.signal("-TERM");
    assert_eq!(daemon.ended().await, 75);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_that_need_an_operator_stop_the_daemon() {
    let (app, provider) = (migrated(Variant::A).await, simulator().await);
    let new = App::new(Variant::A).await;
    let command = |app: &App| daemon(&app.url, &provider.url());
    let strict = simulator_with(Options {
        key: Some(KEY.into()),
        ..Options::default()
    })
    .await;
    app.insert_processing(&["sim-ready-1"]).await;
    for (name, command, code) in [
        ("no own tables", command(&new), 78),
        ("no such table", command(&app).arg("--table=songs"), 78),
        ("no key", command(&app).without("ELEVENLABS_API_KEY"), 78),
        (
            "no address",
            VoiceSync::new(&["daemon", "--listen=203.0.113.1:1"]).env("DATABASE_URL", &app.url),
            78,
        ),
        ("no interval", command(&app).arg("--interval=1ms"), 2),
        (
            "a wrong key",
            daemon(&app.url, &strict.url()).env("ELEVENLABS_API_KEY", "another"),
            77,
        ),
    ] {
        let mut daemon = Daemon::start(command);
        assert_eq!(daemon.ended().await, code, "{name}: {}", daemon.log());
    }
}

/// The application may migrate its table while the daemon runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_adapts_to_a_changed_table() {
    let (app, provider) = (migrated(Variant::A).await, simulator().await);
    let mut daemon = Daemon::start(daemon(&app.url, &provider.url()));
    app.insert_processing(&["sim-ready-1"]).await;
    daemon.wait_until(&app, "completed", 1).await;
    app.execute(
        "ALTER TABLE voices ALTER status DROP DEFAULT;
         ALTER TABLE voices ALTER status TYPE text, ALTER completed_at TYPE timestamptz;
         INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
         SELECT gen_random_uuid(), user_id, 'sim-ready-2', 'new', 'processing' FROM voices",
    )
    .await;
    daemon.wait_until(&app, "completed", 2).await;
    app.execute(
        "ALTER TABLE voices RENAME status TO state;
         UPDATE voices SET state = 'processing'",
    )
    .await;
    assert_eq!(daemon.ended().await, 78, "{}", daemon.log());
    assert!(daemon.log().contains("has no column"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_notifies_systemd() {
    let (app, provider) = (migrated(Variant::E32).await, simulator().await);
    app.insert_processing(&["sim-ready-1"]).await;
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("has a time limit");
    let mut seen = Vec::new();
    let mut wait_for = |word: &str| {
        let mut datagram = [0; 4096];
        loop {
            let size = socket.recv(&mut datagram).unwrap_or_else(|error| {
                panic!("{word} is not among {seen:?}: {error}");
            });
            let text = String::from_utf8_lossy(&datagram[..size]).into_owned();
            seen.push(text.clone());
            if text.contains(word) {
                return seen.clone();
            }
        }
    };
    let command = daemon(&app.url, &provider.url())
        .env("NOTIFY_SOCKET", path.display().to_string())
        .env("WATCHDOG_USEC", "200000");
    let mut daemon = Daemon::start(command);
    wait_for("READY=1");
    let before = wait_for("STATUS=last pass: 1 looked up, 1 completed");
    let is_watchdog = |text: &&String| text.contains("WATCHDOG=1");
    let already = before.iter().filter(is_watchdog).count();
    while wait_for("WATCHDOG=1").iter().filter(is_watchdog).count() < already + 3 {}
    daemon.signal("-TERM");
    wait_for("STOPPING=1");
    assert_eq!(daemon.ended().await, 0);

    // What was not ready is not said to be.
    let command = self::daemon(&app.url, &provider.url())
        .arg("--table=songs")
        .env("NOTIFY_SOCKET", path.display().to_string());
    let mut refused = Daemon::start(command);
    assert_eq!(refused.ended().await, 78);
    socket.set_nonblocking(true).expect("is set");
    let mut rest = [0; 4096];
    while let Ok(size) = socket.recv(&mut rest) {
        let text = String::from_utf8_lossy(&rest[..size]);
        assert!(!text.contains("READY=1"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_page_shows_the_status_or_why_it_is_unavailable() {
    for variant in [Variant::A, Variant::E32] {
        let (app, provider) = (migrated(variant).await, simulator().await);
        app.insert_processing(&["sim-ready-1", "sim-nopreview-1", "sim-pvctraining-1"])
            .await;
        let mut daemon = Daemon::start(daemon(&app.url, &provider.url()));
        daemon.wait_until(&app, "completed", 1).await;
        let patience = std::time::Instant::now() + Duration::from_secs(60);
        let page = loop {
            let (code, page) = daemon.get("/").await;
            assert_eq!(code, 200, "{page}");
            // The pass itself is soon too old to be shown.
            if page.contains("of 1 voice in the recorded passes") {
                break page;
            }
            assert!(std::time::Instant::now() < patience, "{page}");
            tokio::task::yield_now().await;
        };
        for part in [
            "2 voices in processing",
            "preparing (cloned)",
            "training (professional)",
            "p50",
        ] {
            assert!(page.contains(part), "{variant:?}: {part} is not in {page}");
        }
        assert_eq!(daemon.get("/other").await.0, 404);
        daemon.stop().await;
    }

    let away = "postgresql://u:p@127.0.0.1:1/d";
    let mut daemon = Daemon::start(daemon(away, &simulator().await.url()));
    daemon.wait_until_answers("/", 503).await;
    let page = daemon.get("/").await.1;
    assert!(
        page.contains("The status is not available") && page.contains("127.0.0.1"),
        "{page}"
    );
}

/// Every metric exists from the start, so that alerts on events that have not happened find a zero.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_start_at_zero_and_count() {
    let (app, bus, provider) = (
        migrated(Variant::A).await,
        Bus::new().await,
        simulator().await,
    );
    let mut daemon = Daemon::start(daemon(&app.url, &provider.url()).publishing_to(&bus));
    let (code, text) = daemon.get("/metrics").await;
    assert_eq!(code, 200);
    for sample in METRICS {
        assert!(
            text.contains(&format!("voice_sync_{sample}")),
            "{sample} in {text}"
        );
    }
    assert!(
        text.contains("# TYPE voice_sync_passes_total counter\n"),
        "{text}"
    );
    app.insert_processing(&[
        "sim-ready-1",
        "sim-banned-1",
        "sim-nopreview-1",
        "sim-longpreview-1",
    ])
    .await;
    daemon.wait_until(&app, "processing", 2).await;
    for sample in [
        "transitions_total{target=\"completed\"} 1\n",
        "transitions_total{target=\"failed\"} 1\n",
        "publications_total{result=\"published\"} 2\n",
        "set_aside_total{reason=\"preview\"} 1\n",
        "processing_voices 2\n",
        "detection_lag_seconds_count 2\n",
    ] {
        let patience = std::time::Instant::now() + Duration::from_secs(60);
        while !daemon.get("/metrics").await.1.contains(sample) {
            assert!(std::time::Instant::now() < patience, "{sample}");
        }
    }
    daemon.stop().await;
}

const METRICS: &[&str] = &[
    "last_success_timestamp_seconds 0",
    "pass_duration_seconds_count 0\n",
    "passes_total{exit=\"0\"} 0\n",
    "passes_total{exit=\"75\"} 0\n",
    "passes_total{exit=\"78\"} 0\n",
    "transitions_total{target=\"completed\"} 0\n",
    "transitions_total{target=\"failed\"} 0\n",
    "publications_total{result=\"postponed\"} 0\n",
    "processing_voices 0\n",
    "oldest_processing_age_seconds 0",
    "detection_lag_seconds_count 0\n",
    "set_aside_total{reason=\"provider_id\"} 0\n",
    "resting_voices 0\n",
    "lease_reclaims_total 0\n",
    "stale_answers_dropped_total 0\n",
    "unknown_values_total 0\n",
    "outbox_events 0\n",
    "outbox_oldest_age_seconds 0",
    "clock_difference_seconds 0",
    "provider_requests_total{endpoint=\"list\",class=\"ok\"} 0\n",
    "provider_requests_total{endpoint=\"single\",class=\"timeout\"} 0\n",
    "provider_request_duration_seconds_count 0\n",
    "provider_requests_in_flight 0\n",
    "provider_concurrency_limit 4\n",
    "provider_breaker_open 0\n",
    "provider_retry_tokens 10\n",
    "build_info{version=",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync_once_writes_the_same_metrics_to_a_file() {
    let (app, provider) = (migrated(Variant::E32).await, simulator().await);
    app.insert_processing(&["sim-ready-1"]).await;
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("voice_sync.prom");
    let file = path.display().to_string();
    let run = async || {
        let command = sync_once(&app.url, &provider.url());
        command.args(&["--metrics-file", &file]).run().await
    };
    run().await.expect_code(0);
    let text = std::fs::read_to_string(&path).expect("is there");
    assert!(
        text.contains("voice_sync_transitions_total{target=\"completed\"} 1\n"),
        "{text}"
    );
    for sample in METRICS {
        let name = sample.split(['{', ' ']).next().expect("a name");
        assert!(
            text.contains(&format!("\nvoice_sync_{name}")),
            "{name} in {text}"
        );
    }
    assert_eq!(
        std::fs::read_dir(&directory).expect("lists").count(),
        1,
        "nothing is left over"
    );
    let nowhere = sync_once(&app.url, &provider.url());
    let ended = nowhere
        .args(&["--metrics-file", "/nowhere/file"])
        .run()
        .await;
    ended.expect_code(74);
    assert_eq!(ended.count("exit_code"), 74);
}

/// A sample of the file.
fn sample(path: &Path, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).expect("is there");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("voice_sync_{name} ")));
    let value = value.unwrap_or_else(|| panic!("{name} in {text}"));
    value.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_file_accumulates_over_runs_and_is_written_on_every_exit() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("voice_sync.prom");
        let file = path.display().to_string();
        let run = async |url: &str, words: &[&str]| {
            let command = sync_once(url, &provider.url()).args(&["--metrics-file", &file]);
            command.args(words).run().await
        };
        app.insert_processing(&["sim-ready-1", "sim-nopreview-1"])
            .await;
        // A first run that cannot read the database does not know how many voices there are.
        let away = "postgresql://user@127.0.0.1:1/nothing";
        run(away, &[]).await.expect_code(69);
        let first = std::fs::read_to_string(&path).expect("is written");
        assert!(
            !first.contains("\nvoice_sync_processing_voices "),
            "{first}"
        );
        assert!(first.contains("\nvoice_sync_last_exit_code 69"), "{first}");
        std::fs::remove_file(&path).expect("is there");

        run(&app.url, &[]).await.expect_code(0);
        app.insert_processing(&["sim-ready-2"]).await;
        run(&app.url, &[]).await.expect_code(0);
        assert_eq!(
            sample(&path, "transitions_total{target=\"completed\"}"),
            2.0
        );
        assert_eq!(sample(&path, "passes_total{exit=\"0\"}"), 2.0);
        assert_eq!(sample(&path, "pass_duration_seconds_count"), 2.0);
        assert_eq!(sample(&path, "processing_voices"), 1.0);
        let success = sample(&path, "last_success_timestamp_seconds");
        assert!(success > 0.0);
        // The ledger has the database's clock.
        let is_unchanged = |now: f64| (now - success).abs() < 0.5;

        // What the last file says of the voices stays where this run cannot know.
        let failures = [
            (69, away, &[][..]),
            (78, app.url.as_str(), &["--table", "nowhere"][..]),
            (2, app.url.as_str(), &["--voice", "nobody"][..]),
            (2, app.url.as_str(), &["--columns", "odd"][..]),
        ];
        for (code, url, words) in failures {
            run(url, words).await.expect_code(code);
            assert_eq!(sample(&path, "last_exit_code"), f64::from(code));
            assert_eq!(sample(&path, "processing_voices"), 1.0, "{code}");
            assert!(is_unchanged(sample(
                &path,
                "last_success_timestamp_seconds"
            )));
        }
        assert_eq!(sample(&path, "passes_total{exit=\"2\"}"), 2.0);
        assert_eq!(sample(&path, "passes_total{exit=\"69\"}"), 1.0);

        // By name, and without a change: no success of all.
        let named = ["--voice", "sim-nopreview-1"];
        run(&app.url, &named).await.expect_code(0);
        run(&app.url, &["--dry-run"]).await.expect_code(0);
        assert!(is_unchanged(sample(
            &path,
            "last_success_timestamp_seconds"
        )));
        assert_eq!(sample(&path, "last_exit_code"), 0.0);

        // A new file knows from the ledger when a pass last succeeded.
        std::fs::remove_file(&path).expect("is there");
        run(&app.url, &named).await.expect_code(0);
        let in_the_ledger = sample(&path, "last_success_timestamp_seconds");
        assert!(is_unchanged(in_the_ledger), "{in_the_ledger} {success}");
        assert_eq!(sample(&path, "passes_total{exit=\"0\"}"), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_runs_lose_no_count_in_a_shared_metrics_file() {
    let (app, provider) = (migrated(Variant::E32).await, simulator().await);
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("voice_sync.prom");
    let file = path.display().to_string();
    let runs = (0..8).map(|_| async {
        let command = sync_once(&app.url, &provider.url());
        command
            .args(&["--metrics-file", &file])
            .run()
            .await
            .expect_code(0);
    });
    join_all(runs).await;
    assert_eq!(sample(&path, "passes_total{exit=\"0\"}"), 8.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_ends_when_no_voice_is_in_processing_or_on_timeout() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        app.insert_processing(&["sim-ready-1", "sim-ready2s-2", "sim-banned-1"])
            .await;
        let wait = |time: &str| sync_once(&app.url, &provider.url()).args(&["--wait", time]);
        let ended = wait("60s").run().await;
        ended.expect_code(0);
        assert_eq!((ended.count("completed"), ended.count("failed")), (2, 1));
        let answered = ["completed", "failed", "processing"].map(|field| ended.count(field));
        assert_eq!(ended.count("due"), answered.iter().sum::<u64>());

        app.insert_processing(&["sim-nopreview-1"]).await;
        let over = wait("1s").run().await;
        over.expect_code(75);
        assert_eq!(over.count("exit_code"), 75);
        assert!(over.count("processing") >= 1);
    }
    let usage = VoiceSync::new(&["sync-once", "--wait=1s", "--dry-run"]);
    usage.run().await.expect_code(2);
}
