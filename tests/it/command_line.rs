//! What is the same for all commands: help, errors, logs, and where options come from.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use voice_sync_simulator::Options;

use crate::support::app::Variant;
use crate::support::binary::VoiceSync;
use crate::support::daemon::Daemon;
use crate::support::fates::simulator_with;
use crate::support::site::Site;

/// An HTTP server that answers everything alike, and keeps what was asked for.
struct Recorder {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    async fn start(status: u16) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        let status = StatusCode::from_u16(status).expect("a status");
        let router = Router::new().fallback(async move |method: Method, uri: Uri| {
            kept.lock().expect("works").push(format!("{method} {uri}"));
            status
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("has one");
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, requests }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked for until now, sorted.
    fn take(&self) -> Vec<String> {
        let mut requests = std::mem::take(&mut *self.requests.lock().expect("works"));
        requests.sort();
        requests
    }
}

fn text(command: VoiceSync) -> VoiceSync {
    command
        .env("VOICE_SYNC_OUTPUT", "text")
        .env("VOICE_SYNC_LOG_FORMAT", "text")
}

const COMMANDS: [&str; 14] = [
    "sync-once",
    "daemon",
    "migrate",
    "doctor",
    "status",
    "inspect",
    "list",
    "fail",
    "retry",
    "outbox",
    "runs",
    "config",
    "completions",
    "man",
];

#[tokio::test]
async fn short_help_fits_on_a_screen_and_global_options_are_listed_once() {
    const SCREEN: usize = 50;
    let all = VoiceSync::new(&["-h"]).run().await;
    assert!(all.stdout.lines().count() <= SCREEN, "{}", all.stdout);
    for command in COMMANDS {
        let help = VoiceSync::new(&[command, "-h"]).run().await;
        help.expect_code(0);
        assert!(all.stdout.contains(&format!("\n  {command}")), "{command}");
        assert!(help.stdout.lines().count() <= SCREEN, "{}", help.stdout);
        for option in ["--database-url", "--redis-url", "--fail-after"] {
            assert!(!help.stdout.contains(option), "{command}: {option}");
        }
    }
    let long = VoiceSync::new(&["--help"]).run().await;
    for words in ["--database-url", "--fail-after", "Verdicts:", "Exit codes:"] {
        assert_eq!(
            long.stdout.matches(&format!("\n{words}")).count()
                + long.stdout.matches(&format!("  {words} ")).count(),
            1,
            "{words}"
        );
    }
}

#[tokio::test]
async fn errors_follow_the_output_format() {
    // Of clap, of a value, and of the database.
    let unknown = VoiceSync::new(&["status", "--no-such-option"]);
    let no_database = VoiceSync::new(&["status"]);
    let away = VoiceSync::new(&["status"]).env(
        "DATABASE_URL",
        "postgresql://user:secret@127.0.0.1:1/nothing",
    );
    for (command, code) in [(unknown, 2), (no_database, 78), (away, 69)] {
        let as_text = text(command.clone()).run().await;
        as_text.expect_code(code);
        assert_eq!(as_text.stdout, "");
        assert!(as_text.stderr.starts_with("error: "), "{}", as_text.stderr);

        let as_json = command.run().await;
        as_json.expect_code(code);
        let error = &as_json.report()["error"];
        assert_eq!(error["code"], code);
        assert!(error["hint"].is_string());
        let line: Value = serde_json::from_str(as_json.stderr.trim()).expect("one line of JSON");
        assert_eq!(
            (&line["level"], &line["message"]),
            (&json!("ERROR"), &error["message"])
        );
        assert!(!as_json.stderr.contains("secret") && !as_json.stdout.contains("secret"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_at_most_20_transitions_per_pass_unless_verbose() {
    let site = Site::new(Variant::E36).await;
    let logged = async |many: usize, words: &[&str]| {
        let ids: Vec<_> = (0..many)
            .map(|n| format!("sim-ready-{many}x{n}x{}", words.len()))
            .collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        site.app.insert_processing(&ids).await;
        let ended = site.sync_once().args(words).run().await;
        ended.expect_code(0);
        ["voice_completed", "pass_finished"]
            .map(|event| ended.stderr.matches(&format!("\"{event}\"")).count())
    };
    assert_eq!(logged(20, &[]).await, [20, 1]);
    assert_eq!(logged(50, &[]).await, [20, 1]);
    assert_eq!(logged(30, &["-v"]).await, [30, 1]);
    assert_eq!(logged(3, &["--quiet"]).await, [0, 0]);
    // A pass with nothing to do is silent.
    assert_eq!(logged(0, &[]).await, [0, 0]);
    assert_eq!(logged(0, &["-v"]).await, [0, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_and_command_line_override_the_configuration_file() {
    let site = Site::new(Variant::E36).await;
    let directory = TempDir::new().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    fs::write(path("database"), &site.app.url).expect("writes");
    let file = format!(
        "database-url-file = {:?}\nconcurrency = 7\nfail-after = \"6h\"\nevents = \"none\"\n",
        path("database")
    );
    fs::write(path("config.toml"), file).expect("writes");
    let command = |words: &[&str]| {
        let command = VoiceSync::new(words).args(&["--config", &path("config.toml")]);
        command.env("ELEVENLABS_BASE_URL", site.provider.url())
    };
    let show = async |command: VoiceSync| {
        let shown = command.run().await;
        shown.expect_code(0);
        let options = shown.report()["options"]
            .as_array()
            .expect("options")
            .clone();
        move |name: &str| {
            let option = options
                .iter()
                .find(|option| option["name"] == name)
                .expect(name);
            [&option["value"], &option["source"]]
                .map(|text| text.as_str().unwrap_or_default().to_owned())
        }
    };
    let shown = show(command(&["config", "show"])).await;
    assert_eq!(shown("concurrency"), ["7".to_owned(), path("config.toml")]);
    assert_eq!(shown("lookup"), ["auto", "default"]);
    assert_eq!(shown("database-url")[1], "database-url-file");
    let shown =
        show(command(&["config", "show", "--fail-after", "1h"]).env("VOICE_SYNC_CONCURRENCY", "9"))
            .await;
    assert_eq!(shown("concurrency"), ["9", "VOICE_SYNC_CONCURRENCY"]);
    assert_eq!(shown("fail-after"), ["1h", "the command line"]);
    let by_variable =
        VoiceSync::new(&["config", "check"]).env("VOICE_SYNC_CONFIG", path("config.toml"));
    by_variable.run().await.expect_code(0);

    site.app.insert_processing(&["sim-ready-1"]).await;
    command(&["sync-once"]).run().await.expect_code(0);
    assert_eq!(site.app.row("sim-ready-1").await.status, "completed");

    for (content, says) in [
        ("concurency = 4", "did you mean concurrency?"),
        ("concurrency = 0", "concurrency in "),
        (
            "database-url = \"postgresql://u:secret@h/d\"",
            "database-url-file",
        ),
        ("concurrency", "cannot read the configuration file"),
        ("wait = \"1m\"", "belongs to a single run"),
        ("pending = true", "belongs to a single run"),
        ("yes = true", "belongs to a single run"),
    ] {
        fs::write(path("config.toml"), content).expect("writes");
        let ended = command(&["config", "check"]).run().await;
        ended.expect_code(2);
        assert!(
            ended.stderr.contains(says) && !ended.stderr.contains("secret"),
            "{content}: {}",
            ended.stderr
        );
    }
    let nowhere = VoiceSync::new(&["config", "check", "--config", "/nowhere/config.toml"])
        .run()
        .await;
    nowhere.expect_code(2);
    // What is set is checked as well, without connecting to anything.
    fs::write(
        path("config.toml"),
        "database-url-file = \"/nowhere/url\"\n",
    )
    .expect("writes");
    command(&["config", "check"]).run().await.expect_code(78);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_check_and_show_cover_all_options_and_hide_secrets() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("config.toml").display().to_string();
    let command = |action: &str| {
        VoiceSync::new(&["config", action, "--config", &file])
            .env("DATABASE_URL", "sqlite:////nowhere/app.db")
            .env("ELEVENLABS_API_KEY", "key")
    };
    let write = |content: &str| fs::write(&file, content).expect("writes");
    write("interval = \"3s\"\nlisten = 9090\nmax-age = \"1h\"\nallowed-hosts = [\"a\", \"b\"]\n");
    command("check").run().await.expect_code(0);
    let shown = command("show")
        .env("VOICE_SYNC_REQUEST_BUDGET", "2/s")
        .env("VOICE_SYNC_LISTEN_TOKEN", "secret-token")
        .run()
        .await;
    shown.expect_code(0);
    assert!(!shown.stdout.contains("secret-token"), "{}", shown.stdout);
    let options = shown.report()["options"].clone();
    let option = |name: &str| {
        let mut options = options.as_array().expect("options").iter();
        let found = options.find(|option| option["name"] == name).expect(name);
        [&found["value"], &found["source"]].map(|text| text.as_str().unwrap_or("none").to_owned())
    };
    for (name, value, source) in [
        ("interval", "3s", file.as_str()),
        ("listen", "9090", &file),
        ("max-age", "1h", &file),
        ("allowed-hosts", "a,b", &file),
        ("request-budget", "2/s", "VOICE_SYNC_REQUEST_BUDGET"),
        ("listen-token", "set", "VOICE_SYNC_LISTEN_TOKEN"),
        ("ping-url", "none", "default"),
        ("api-url", "https://api.elevenlabs.io", "default"),
        (
            "status-values",
            "processing=processing,completed=completed,failed=failed",
            "default",
        ),
    ] {
        assert_eq!(option(name), [value, source], "{name}");
    }

    // All of them are reported at once.
    write("interval = \"3x\"\nmax-age = \"1\"\n");
    let checked = command("check")
        .env("VOICE_SYNC_REQUEST_BUDGET", "many")
        .env("VOICE_SYNC_PING_URL", "ftp://secret-host/secret-path")
        .env("VOICE_SYNC_LISTEN_TOKEN_FILE", "/nowhere/token")
        .run()
        .await;
    checked.expect_code(2);
    let errors = checked.report()["errors"].to_string();
    for part in [
        "interval in ",
        "max-age in ",
        "VOICE_SYNC_REQUEST_BUDGET",
        "must be https",
        "/nowhere/token",
    ] {
        assert!(errors.contains(part), "{part} is not in {errors}");
    }
    assert!(!errors.contains("secret"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepts_redis_host_and_port_and_warns_without_redis() {
    let site = Site::new(Variant::E36).await;
    let url = url::Url::parse(&site.bus.url).expect("a URL");
    let parts = |command: VoiceSync| {
        command
            .without("REDIS_URL")
            .env("REDIS_HOST", url.host_str().expect("a host"))
            .env("REDIS_PORT", url.port().expect("a port").to_string())
            .env("REDIS_PASSWORD", url.password().expect("a password"))
    };
    site.app.insert_processing(&["sim-ready-1"]).await;
    let ended = parts(site.sync_once()).run().await;
    ended.expect_code(0);
    assert_eq!(ended.count("events_published"), 1);

    const WARNING: &str = "no event was recorded";
    site.app.insert_processing(&["sim-ready-2"]).await;
    let ended = site.sync_once().without("REDIS_URL").run().await;
    ended.expect_code(0);
    assert_eq!(ended.stderr.matches(WARNING).count(), 1, "{}", ended.stderr);
    site.app.insert_processing(&["sim-ready-3"]).await;
    let ended = site
        .sync_once()
        .without("REDIS_URL")
        .args(&["--events", "none"])
        .run()
        .await;
    assert!(!ended.stderr.contains(WARNING), "{}", ended.stderr);
}

#[tokio::test]
async fn rejects_unexpanded_variables_without_revealing_the_password() {
    for (variable, value) in [
        (
            "DATABASE_URL",
            "postgresql://${POSTGRES_USER}:secret@db:5432/app",
        ),
        ("REDIS_URL", "redis://:secret${MORE}@redis:6379"),
    ] {
        let command = VoiceSync::new(&["sync-once"])
            .env("DATABASE_URL", "sqlite:///nowhere.db")
            .env(variable, value);
        let ended = text(command).run().await;
        ended.expect_code(2);
        assert!(
            ended.stderr.contains("not expanded") && ended.stderr.contains("${"),
            "{}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nagios_check_uses_nagios_exit_codes() {
    let site = Site::new(Variant::E32).await;
    let check = |words: &[&str]| {
        text(site.run(&["status", "--check=nagios"]))
            .args(words)
            .run()
    };
    check(&[]).await.expect_code(0);
    site.app.insert_processing(&["sim-nopreview-1"]).await;
    let never = check(&[]).await;
    never.expect_code(2);
    assert!(
        never.stdout.starts_with("VOICE-SYNC CRITICAL: "),
        "{}",
        never.stdout
    );
    site.sync_once().run().await.expect_code(0);
    check(&[]).await.expect_code(0);
    let many = check(&["--max-backlog", "0"]).await;
    many.expect_code(1);
    assert!(
        many.stdout.starts_with("VOICE-SYNC WARNING: "),
        "{}",
        many.stdout
    );
    assert!(
        many.stdout
            .lines()
            .next()
            .is_some_and(|line| line.contains(" | processing=1;0;;0 oldest_age=")),
        "{}",
        many.stdout
    );
    let away = text(VoiceSync::new(&["status", "--check=nagios"]))
        .env("DATABASE_URL", "postgresql://user@127.0.0.1:1/no");
    let away = away.run().await;
    away.expect_code(3);
    assert!(
        away.stdout.starts_with("VOICE-SYNC UNKNOWN: "),
        "{}",
        away.stdout
    );
    // A plugin that cannot tell is neither OK nor CRITICAL, and says why on stdout.
    for words in [&[][..], &["--max-age=soon"], &["--no-such-option"]] {
        let unknown = text(VoiceSync::new(&["status", "--check=nagios"]));
        let unknown = unknown.args(words).run().await;
        unknown.expect_code(3);
        assert!(
            unknown.stdout.starts_with("VOICE-SYNC UNKNOWN: ")
                && unknown.stdout.lines().count() == 1,
            "{words:?}: {}",
            unknown.stdout
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_take_precedence_over_secrets_of_a_configuration_file() {
    let site = Site::new(Variant::E36).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    let strict = simulator_with(Options {
        key: Some("right".into()),
        ..Options::default()
    })
    .await;
    let directory = TempDir::new().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    fs::write(path("wrong"), "wrong").expect("writes");
    fs::write(path("right"), "right").expect("writes");
    let file = format!("api-key-file = {:?}\n", path("wrong"));
    fs::write(path("config.toml"), file).expect("writes");
    let pass = || {
        let pass = site.sync_once().env("ELEVENLABS_BASE_URL", strict.url());
        let pass = pass.without("ELEVENLABS_API_KEY");
        pass.args(&["--dry-run", "--config", &path("config.toml")])
    };
    pass().run().await.expect_code(77);
    let by_variable = pass().env("ELEVENLABS_API_KEY", "right");
    by_variable.run().await.expect_code(0);
    let by_file = pass().env("ELEVENLABS_API_KEY_FILE", path("right"));
    by_file.run().await.expect_code(0);
    let by_option = pass().args(&["--api-key-file", &path("right")]);
    by_option.run().await.expect_code(0);
    // A secret itself may not be in the file.
    fs::write(path("config.toml"), "api-key = \"wrong\"\n").expect("writes");
    let refused = pass().run().await;
    refused.expect_code(2);
    assert!(
        refused.stderr.contains("api-key-file"),
        "{}",
        refused.stderr
    );
}

/// As bash calls it when somebody presses the tab key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bash_completes_options_of_subcommands() {
    let script = VoiceSync::new(&["completions", "bash"]).run().await;
    script.expect_code(0);
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("voice-sync.bash");
    fs::write(&path, &script.stdout).expect("writes");
    for (words, expected) in [
        ("sync-", "sync-once"),
        ("sync-once --max", "--max-runtime"),
        ("outbox ", "resend"),
        ("outbox purge --pe", "--pending"),
        ("list --status ", "completed"),
    ] {
        let program = "source \"$1\"; line=\"voice-sync $2\"; read -ra COMP_WORDS <<<\"$line\"
            [[ $line != *' ' ]] || COMP_WORDS+=('')
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _voice__sync voice-sync \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"
            echo \"${COMPREPLY[@]}\"";
        let completed = std::process::Command::new("bash")
            .args(["--norc", "-c", program, "bash"])
            .arg(&path)
            .arg(words)
            .output()
            .expect("bash runs");
        let reply = String::from_utf8_lossy(&completed.stdout);
        let errors = String::from_utf8_lossy(&completed.stderr);
        assert!(
            reply.split_whitespace().any(|word| word == expected),
            "{words:?}: {reply} {errors}"
        );
    }
}

/// An `EnvironmentFile` with `NAME=`, and Compose with `${NAME:-}`, set blank variables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blank_variables_count_as_unset() {
    let page = include_str!("../../docs/reference/commands.md");
    let names = page.split("[env: ").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric())?;
        Some(&rest[..end])
    });
    let names: std::collections::BTreeSet<_> = names.collect();
    assert!(names.len() > 25, "{names:?}");
    let site = Site::new(Variant::E36).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    let is_set = [
        "VOICE_SYNC_EVENT_PREFIX",
        "DATABASE_URL",
        "ELEVENLABS_BASE_URL",
        "REDIS_URL",
        "VOICE_SYNC_OUTPUT",
    ];
    for command in [&["sync-once"][..], &["status"], &["config", "check"]] {
        let blank = names.iter().filter(|name| !is_set.contains(*name));
        let command = blank.fold(site.run(command), |command, name| command.env(name, " "));
        command.run().await.expect_code(0);
    }
    assert_eq!(site.app.row("sim-ready-1").await.status, "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_hints_match_the_error() {
    let site = Site::new(Variant::E36).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = taken.local_addr().expect("an address").to_string();
    for (words, code, hint) in [
        (&["inspect", "nobody"][..], 2, "`voice-sync list`"),
        (&["sync-once", "--voice", "nobody"], 2, "`voice-sync list`"),
        (&["daemon", "--listen", &address], 74, "use a free port"),
        (&["outbox", "list", "nobody"], 2, "`voice-sync list`"),
        (&["fail", "sim-ready-1"], 2, "`voice-sync help COMMAND`"),
        (&["sync-onc"], 2, "sync-once"),
        (&["runs", "--limit=0"], 2, "`voice-sync help COMMAND`"),
        (
            &["outbox", "list", "--limit=0"],
            2,
            "`voice-sync help COMMAND`",
        ),
    ] {
        let ended = text(site.run(words)).run().await;
        ended.expect_code(code);
        let lines: Vec<_> = ended.stderr.lines().collect();
        let [.., error, shown] = lines.as_slice() else {
            panic!("{words:?}: {}", ended.stderr)
        };
        assert!(
            error.starts_with("error: ") && shown.starts_with("hint: ") && shown.contains(hint),
            "{words:?}: {}",
            ended.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_pass_prints_no_text_report() {
    let site = Site::new(Variant::E36).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    let quiet = text(site.sync_once()).args(&["-q"]).run().await;
    quiet.expect_code(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    assert_eq!(site.app.row("sim-ready-1").await.status, "completed");
    // A program that asks for JSON gets it.
    assert!(site.sync_once().args(&["-q"]).run().await.report()["due"].is_number());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_url_is_called_at_the_start_and_at_the_end() {
    let site = Site::new(Variant::E36).await;
    let switch = Recorder::start(200).await;
    let url = format!("{}/ping/9d2c", switch.url());
    let run = |command: VoiceSync, url: &str| command.env("VOICE_SYNC_PING_URL", url).run();
    run(site.sync_once(), &url).await.expect_code(0);
    assert_eq!(switch.take(), ["POST /ping/9d2c", "POST /ping/9d2c/start"]);
    run(site.sync_once().args(&["--dry-run"]), &url)
        .await
        .expect_code(0);
    assert_eq!(switch.take(), [""; 0], "a dry run is not a run");
    let away = site
        .sync_once()
        .env("DATABASE_URL", "postgresql://user@127.0.0.1:1/no");
    run(away, &url).await.expect_code(69);
    assert_eq!(
        switch.take(),
        ["POST /ping/9d2c/69", "POST /ping/9d2c/start"]
    );
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("ping");
    fs::write(&file, format!("{url}\n")).expect("writes");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("sets");
    let by_file = site
        .sync_once()
        .env("VOICE_SYNC_PING_URL_FILE", file.display().to_string());
    by_file.run().await.expect_code(0);
    assert_eq!(switch.take().len(), 2);

    // Without a switch that answers, the run is as good; its secret is not in the log.
    let refusing = Recorder::start(500).await;
    for url in [
        format!("{}/9d2c", refusing.url()),
        "http://127.0.0.1:1/9d2c".to_owned(),
    ] {
        let ended = run(site.sync_once(), &url).await;
        ended.expect_code(0);
        assert!(
            ended.stderr.contains("the ping was not accepted") && !ended.stderr.contains("9d2c"),
            "{}",
            ended.stderr
        );
    }
    for wrong in ["http://example.com/9d2c", "no URL", "ftp://127.0.0.1/9d2c"] {
        let ended = run(site.sync_once(), wrong).await;
        ended.expect_code(2);
        assert!(!ended.stderr.contains("9d2c"), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listen_token_protects_page_and_metrics_but_not_probes() {
    let site = Site::new(Variant::E36).await;
    let command = site
        .run(&["daemon", "--listen", "127.0.0.1:0"])
        .env("VOICE_SYNC_LISTEN_TOKEN", "tók en");
    let mut daemon = Daemon::start(command);
    daemon.wait_until_answers("/readyz", 200).await;
    daemon.wait_until_answers("/livez", 200).await;
    for path in ["/", "/metrics"] {
        let basic = "Basic YW55b25lOnTDs2sgZW4="; // anyone:tók en
        for (authorization, code) in [
            (None, 401),
            (Some("Bearer another"), 401),
            (Some("Basic bm9uZQ=="), 401),
            (Some("Basic !"), 401),
            (Some("tók en"), 401),
            (Some("Bearer tók en"), 200),
            (Some(basic), 200),
        ] {
            assert_eq!(
                daemon.get_with(path, authorization).await,
                code,
                "{path} {authorization:?}"
            );
        }
    }
    daemon.stop().await;
}

/// The reference of all commands, from their help. `UPDATE=1 scripts/test --test it reference_of_commands` writes it.
#[tokio::test]
async fn the_reference_of_commands_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/commands.md");
    let mut page =
        "# Commands\n\nThe help of `voice-sync` and of each command. This page is generated:\n\
                    `UPDATE=1 scripts/test --test it reference_of_commands`.\n"
            .to_owned();
    let mut waiting = vec![vec![]];
    while let Some(words) = waiting.pop() {
        let mut command = words.clone();
        command.push("--help".to_owned());
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let help = VoiceSync::new(&command).without("VOICE_SYNC_OUTPUT");
        let help = help.without("VOICE_SYNC_LOG_FORMAT");
        let help = help.run().await;
        help.expect_code(0);
        let lines: Vec<_> = help.stdout.lines().map(str::trim_end).collect();
        let title = [&["voice-sync".to_owned()], words.as_slice()]
            .concat()
            .join(" ");
        page.push_str(&format!(
            "\n## {title}\n\n```text\n{}\n```\n",
            lines.join("\n").trim_end()
        ));
        let subcommands = lines
            .iter()
            .skip_while(|line| **line != "Commands:")
            .skip(1);
        let subcommands = subcommands.take_while(|line| !line.is_empty());
        let mut names: Vec<_> = subcommands
            .filter_map(|line| {
                line.strip_prefix("  ")
                    .filter(|line| !line.starts_with(' '))
            })
            .filter_map(|line| line.split(' ').next())
            .filter(|name| *name != "help")
            .map(|name| [words.as_slice(), &[name.to_owned()]].concat())
            .collect();
        names.reverse();
        waiting.extend(names);
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, &page).expect("writes");
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page,
        "run UPDATE=1 scripts/test --test it reference_of_commands"
    );
}
