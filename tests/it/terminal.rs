//! What a person sees on a terminal, and that elsewhere there is nothing of it.

use std::time::{Duration, Instant};

use crate::support::app::{App, Variant};
use crate::support::binary::{Ended, VoiceSync, sync_once};
use crate::support::fates::simulator;
use crate::support::site::Site;

/// Runs the rest of its command line on a terminal of its own, with what comes on its standard input typed.
const ON_A_TERMINAL: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

fn on_a_terminal(command: VoiceSync, typed: &str) -> VoiceSync {
    let typing = format!("printf '{typed}' | exec python3 -c '{ON_A_TERMINAL}' \"$@\"");
    let path = std::env::var("PATH").unwrap_or_default();
    let command = command
        .env("PATH", path)
        .env("TERM", "xterm")
        .env("VOICE_SYNC_OUTPUT", "text");
    command.through(&["sh", "-c", &typing, "sh"])
}

async fn site() -> Site {
    let site = Site::new(Variant::E36).await;
    site.app
        .insert_processing(&["sim-ready-1", "sim-banned-1", "sim-nopreview-1"])
        .await;
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pass_on_a_terminal_shows_a_progress_bar_and_a_summary() {
    let site = site().await;
    let seen: Ended = on_a_terminal(site.sync_once(), "").run().await;
    seen.expect_code(0);
    assert!(seen.stdout.contains("3 of 3"), "{:?}", seen.stdout);
    assert!(
        seen.stdout.contains('\r') && seen.stdout.contains("\x1b[2K"),
        "{:?}",
        seen.stdout
    );
    let (_, summary) = seen
        .stdout
        .rsplit_once("\x1b[2K")
        .expect("the bar is wiped");
    assert!(
        summary.contains("3 due, 3 looked up") && !summary.contains("of 3,"),
        "{summary:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn piped_output_has_no_control_characters() {
    let site = site().await;
    for command in [
        ["sync-once"].as_slice(),
        &["status"],
        &["status", "--check"],
        &["runs"],
        &["inspect", "sim-nopreview-1"],
        &["doctor"],
        &["outbox", "list", "--all"],
        &["retry", "--all-failed"],
    ] {
        let ended = site
            .run(command)
            .env("VOICE_SYNC_OUTPUT", "text")
            .env("TERM", "xterm")
            .run()
            .await;
        let is_control = |c: char| c.is_control() && c != '\n';
        assert!(
            !ended.stdout.contains(is_control),
            "{command:?}: {:?}",
            ended.stdout
        );
        assert!(
            !ended.stderr.contains(is_control),
            "{command:?}: {:?}",
            ended.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colours_are_disabled_by_no_color_and_dumb_terminals() {
    let site = site().await;
    const BOLD: &str = "\x1b[1m";
    let status = || site.run(&["status"]);
    assert!(
        on_a_terminal(status(), "")
            .run()
            .await
            .stdout
            .contains(BOLD)
    );
    let plain = on_a_terminal(status(), "").env("NO_COLOR", "1");
    assert!(!plain.run().await.stdout.contains(BOLD));
    let dumb = on_a_terminal(status(), "").env("TERM", "dumb");
    assert!(!dumb.run().await.stdout.contains(BOLD));
}

/// Without confirmation, nothing is put back, resent or purged in bulk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_commands_require_yes_without_a_terminal() {
    let site = site().await;
    site.sync_once().run().await.expect_code(0);
    let events = format!("SELECT count(*) FROM {}", site.app.own("outbox"));
    let failed = "SELECT count(*) FROM voices WHERE CAST(status AS text) = 'failed'";
    let before = (
        site.app.number(&events).await,
        site.app.number(failed).await,
    );
    assert!(before.0 > 0 && before.1 > 0, "{before:?}");
    let runs = format!(
        "SELECT count(*) FROM {} WHERE command IS NOT NULL",
        site.app.own("runs")
    );
    for command in [
        &["retry", "--all-failed"][..],
        &["outbox", "purge"],
        &["outbox", "resend", "--since", "1h"],
    ] {
        for output in ["json", "text"] {
            let refused = site
                .run(command)
                .env("VOICE_SYNC_OUTPUT", output)
                .run()
                .await;
            refused.expect_code(2);
            assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
            assert_eq!(refused.stdout.is_empty(), output == "text");
        }
    }
    let after = (
        site.app.number(&events).await,
        site.app.number(failed).await,
    );
    assert_eq!((after, site.app.number(&runs).await), (before, 0));
    // Where there is nothing to do, or it is named, nobody needs to be asked.
    site.run(&["outbox", "purge", "--pending"])
        .run()
        .await
        .expect_code(0);
    site.run(&["retry", "--set-aside"])
        .run()
        .await
        .expect_code(0);
    let named = site.run(&["outbox", "resend", "sim-banned-1"]).run().await;
    named.expect_code(0);
    let pending = site.run(&["outbox", "purge", "--pending"]).run().await;
    pending.expect_code(2);
    assert!(
        pending
            .stderr
            .contains("Remove 1 event that will then never be published?"),
        "{}",
        pending.stderr
    );
    site.run(&["retry", "sim-banned-1"])
        .run()
        .await
        .expect_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmation_prompt_can_be_declined() {
    let site = site().await;
    site.sync_once().run().await.expect_code(0);
    let retry = || site.run(&["retry", "--all-failed"]);
    let asked = on_a_terminal(retry(), "n\\n").run().await;
    asked.expect_code(1);
    assert!(
        asked
            .stdout
            .contains("put 1 failed voice back to processing (1 banned)"),
        "{}",
        asked.stdout
    );
    assert_eq!(site.app.row("sim-banned-1").await.status, "failed");
    on_a_terminal(retry(), "y\\n").run().await.expect_code(0);
    assert_eq!(site.app.row("sim-banned-1").await.status, "processing");
    site.sync_once().run().await.expect_code(0);
    let unasked = on_a_terminal(retry().arg("--yes"), "").run().await;
    unasked.expect_code(0);
    assert!(!unasked.stdout.contains("[y/N]"), "{}", unasked.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_watch_repeats_until_interrupted() {
    let site = site().await;
    let watch = site.run(&["status", "--watch=100ms"]);
    let mut child = watch.start();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        child.stdout.take().expect("a pipe"),
    ));
    for _ in 0..3 {
        let line = lines.next().expect("goes on").expect("reads");
        assert!(line.contains(r#""processing":3"#), "{line}");
    }
    let interrupt = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.expect("kill runs").success());
    drop(lines);
    let patience = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().expect("is asked") {
            break status;
        }
        if Instant::now() > patience {
            child.kill().expect("is killed");
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_have_no_timestamp_in_the_journal() {
    let site = site().await;
    let path = std::env::var("PATH").unwrap_or_default();
    // As systemd sets it where standard error is the journal, and where it once was.
    for (stream, format, has_time) in [
        ("$(stat -L -c %d:%i /proc/self/fd/2)", "json", false),
        ("$(stat -L -c %d:%i /proc/self/fd/2)", "text", false),
        ("1:1", "json", true),
        ("1:1", "text", true),
    ] {
        let launcher = format!("JOURNAL_STREAM={stream} exec \"$@\"");
        let command = site
            .sync_once()
            .env("PATH", &path)
            .env("VOICE_SYNC_LOG_FORMAT", format);
        let ended = command.through(&["sh", "-c", &launcher, "sh"]).run().await;
        ended.expect_code(0);
        let line = ended.stderr.lines().last().expect("a line");
        assert!(line.contains("pass finished"), "{line}");
        assert_eq!(
            line.contains("20") && line.contains("Z"),
            has_time,
            "{stream} {format}: {line}"
        );
    }
}

/// One line per pass, one per transition, and one per kind of problem, however many voices have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_has_one_line_per_kind_of_event() {
    let site = Site::new(Variant::E36).await;
    let ids = (0..20).flat_map(|n| {
        [
            format!("no id {n}"),
            format!("sim-longpreview-{n}"),
            format!("sim-nopreview-{n}"),
        ]
    });
    let ids: Vec<_> = ids
        .into_iter()
        .chain(["sim-ready-1".to_owned(), "sim-banned-1".to_owned()])
        .collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    site.app.insert_processing(&ids).await;
    let ended = site.sync_once().run().await;
    ended.expect_code(0);
    let mut lines: Vec<String> = Vec::new();
    for line in ended.stderr.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        lines.push(format!("{} {}", text("level"), text("message")));
    }
    lines.sort();
    let starts = [
        "INFO pass finished",
        "INFO voice is completed",
        "INFO voice is failed",
        "WARN voices set aside",
        "WARN voices set aside",
    ];
    assert_eq!(lines.len(), starts.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{lines:#?}");
    }
}

/// Ids from the application's rows with line breaks and terminal codes, in every place of a log line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_cannot_forge_log_lines() {
    const FORGED: &str = "x\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\u{2028}y";
    for variant in [Variant::B, Variant::E36] {
        let (app, provider) = (App::new(variant).await, simulator().await);
        if variant == Variant::B {
            app.execute("ALTER TABLE voices ALTER id TYPE text").await;
        }
        for (number, provider_id) in ["sim-ready-1", "sim-longpreview-1", FORGED]
            .iter()
            .enumerate()
        {
            app.execute(&format!(
                "INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
                 VALUES ('{FORGED}{number}', '00000000-0000-4000-8000-000000000000', '{provider_id}', 'n', 'processing')"
            ))
            .await;
        }
        for format in ["text", "json"] {
            app.execute("UPDATE voices SET status = 'processing'").await;
            let run = sync_once(&app.url, &provider.url())
                .args(&["--auto-migrate", "--log-format", format])
                .env("RUST_LOG", "debug")
                .run()
                .await;
            assert!(run.stderr.contains("voice is completed"), "{}", run.stderr);
            assert!(run.stderr.contains("forged"), "{}", run.stderr);
            for line in run.stderr.lines() {
                if format == "json" {
                    assert!(
                        serde_json::from_str::<serde_json::Value>(line).is_ok(),
                        "{line:?}"
                    );
                    continue;
                }
                let time = line.split_once('T').expect("a time").0;
                assert!(
                    time.parse::<chrono::NaiveDate>().is_ok(),
                    "a line of its own: {line:?}"
                );
                let is_odd = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}');
                assert!(!line.contains(is_odd), "{line:?}");
            }
        }
    }
}
