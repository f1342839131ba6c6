//! `voice-sync doctor`: what it says of a healthy site, of each thing that may be wrong, and that its
//! exit code is the one that `sync-once` would have.

use serde_json::{Value, json};
use uuid::Uuid;
use voice_sync_simulator::Options;

use crate::support::app::{App, Pool, Variant, sqlite_ddl};
use crate::support::binary::{Ended, VoiceSync, sync_once};
use crate::support::fates::{simulator, simulator_with};
use crate::support::site::{ALL, Site};

/// What is said of one thing, which must be in this state.
async fn says(site: &Site, check: &str, state: &str) -> String {
    said(&site.doctor().run().await, check, state)
}

#[track_caller]
fn said(ended: &Ended, check: &str, state: &str) -> String {
    let findings = findings(ended);
    let found = findings
        .iter()
        .find(|f| f["check"] == check && f["state"] == state);
    match found {
        Some(finding) => format!(
            "{} {}",
            finding["says"].as_str().unwrap_or_default(),
            finding["advice"].as_str().unwrap_or_default()
        ),
        None => panic!("{check} is not {state} in {findings:#?}\n{}", ended.stderr),
    }
}

fn findings(ended: &Ended) -> Vec<Value> {
    ended.report()["findings"]
        .as_array()
        .expect("a list")
        .clone()
}

fn states<'a>(findings: &'a [Value], state: &str) -> Vec<&'a Value> {
    findings
        .iter()
        .filter(|finding| finding["state"] == state)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn healthy_site_has_no_errors() {
    for variant in ALL {
        let site = Site::new(variant).await;
        site.app
            .insert_processing(&["sim-ready-1", "sim-nopreview-1", "sim-pvctraining-1"])
            .await;
        let ended = site.doctor().run().await;
        ended.expect_code(0);
        let findings = findings(&ended);
        assert_eq!(ended.report()["exit_code"], 0);
        assert_eq!(states(&findings, "error"), Vec::<&Value>::new());
        // The Redis of the tests keeps nothing.
        let doubtful: Vec<_> = states(&findings, "warning")
            .iter()
            .map(|f| &f["check"])
            .collect();
        assert_eq!(doubtful, ["bus persistence"], "{variant:?}: {findings:#?}");
        let checks = [
            "database",
            "own tables",
            "table",
            "update",
            "obstacles",
            "index",
            "backlog",
            "statuses",
            "second poller",
            "outbox",
            "breaker",
            "provider",
            "lookups",
            "event bus",
            "bus memory",
            "streams",
        ];
        for check in checks {
            said(&ended, check, "ok");
        }
        assert!(said(&ended, "backlog", "ok").starts_with("3 voices in processing"));
        assert!(said(&ended, "lookups", "ok").contains("agree on 3"));
        let pooled = said(&ended, "database", "ok").contains("pooler");
        assert_eq!(pooled, variant == Variant::Pooled);

        let text = site.doctor().args(&["--output", "text"]).run().await;
        text.expect_code(0);
        assert_eq!(text.stdout.lines().last(), Some("0 errors, 1 warning"));
        assert_eq!(
            text.stdout
                .lines()
                .filter(|line| !line.starts_with(' '))
                .count(),
            findings.len() + 1,
            "one line a check, and a summary: {}",
            text.stdout
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shows_the_source_of_each_value_but_no_secret() {
    let site = Site::new(Variant::E36).await;
    let directory = tempfile::TempDir::new().expect("a directory");
    let secrets = ["key-in-a-file", "bus-word-4711", "database-word-4711"];
    let file = directory.path().join("key");
    std::fs::write(&file, secrets[0]).expect("is written");
    let by_file = || {
        site.doctor()
            .without("ELEVENLABS_API_KEY")
            .env("ELEVENLABS_API_KEY_FILE", file.display().to_string())
            .env("VOICE_SYNC_CONCURRENCY", "7")
            .args(&["--fail-after", "30m"])
    };
    let ended = by_file().run().await;
    ended.expect_code(0);
    let configuration: Vec<String> = findings(&ended)
        .iter()
        .filter(|finding| finding["check"] == "configuration")
        .map(|finding| finding["says"].as_str().unwrap_or_default().to_owned())
        .collect();
    let all = configuration.join("\n");
    for line in [
        "(from DATABASE_URL)",
        "api-key-file: set (from ELEVENLABS_API_KEY_FILE)",
        "concurrency: 7 (from VOICE_SYNC_CONCURRENCY)",
        "fail-after: 30m (from the command line)",
        "lookup: auto",
    ] {
        assert!(all.contains(line), "{line} is not in {all}");
    }

    let server = "postgresql://me:database-word-4711@127.0.0.1:1/app";
    let wrong = by_file()
        .env("DATABASE_URL", server)
        .env("REDIS_URL", "redis://me:bus-word-4711@127.0.0.1:1/0");
    let ended = wrong.run().await;
    ended.expect_code(69);
    for secret in secrets {
        assert!(!ended.stdout.contains(secret), "{}", ended.stdout);
        assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    }
    said(&ended, "database", "error");
    assert!(said(&ended, "event bus", "error").contains("127.0.0.1:1"));
    said(&ended, "provider", "ok");

    let directory = site.app.directory();
    std::fs::write(directory.join("url"), &site.app.url).expect("is written");
    let from_file = by_file().env("DATABASE_URL", " ").env(
        "DATABASE_URL_FILE",
        directory.join("url").display().to_string(),
    );
    let ended = from_file.run().await;
    ended.expect_code(0);
    assert!(
        ended.stdout.contains("(from DATABASE_URL_FILE)"),
        "{}",
        ended.stdout
    );

    let gateway = "https://me:gateway-word-4711@gateway.example?token=gateway-word-4711";
    let ended = by_file().env("ELEVENLABS_BASE_URL", gateway).run().await;
    ended.expect_code(2);
    let whole = format!("{}{}", ended.stdout, ended.stderr);
    assert!(!whole.contains("gateway-word-4711"), "{whole}");
    let ended = by_file().run().await;
    let base = format!(
        "api-url: {} (from ELEVENLABS_BASE_URL)",
        site.provider.url()
    );
    assert!(ended.stdout.contains(base.trim_end_matches('/')));
}

/// Each case breaks a healthy site in a way that makes a pass fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_exits_with_the_code_of_a_pass() {
    type Wrong = fn(VoiceSync) -> VoiceSync;
    let cases: [(&str, Wrong, i32); 9] = [
        (
            "no database",
            |c| c.env("DATABASE_URL", "postgresql://127.0.0.1:1/app"),
            69,
        ),
        (
            "no such file",
            |c| c.env("DATABASE_URL", "sqlite:////nowhere/app.db"),
            78,
        ),
        (
            "a URL of no database",
            |c| c.env("DATABASE_URL", "mysql://here/app"),
            2,
        ),
        ("no key", |c| c.without("ELEVENLABS_API_KEY"), 78),
        (
            "a wrong key",
            |c| c.env("ELEVENLABS_API_KEY", "another-key"),
            77,
        ),
        (
            "no provider",
            |c| c.env("ELEVENLABS_BASE_URL", "http://127.0.0.1:1"),
            75,
        ),
        (
            "no Redis",
            |c| c.env("REDIS_URL", "redis://127.0.0.1:1"),
            75,
        ),
        ("no such table", |c| c.args(&["--table", "songs"]), 78),
        (
            "other words",
            |c| c.args(&["--columns", "status=state"]),
            78,
        ),
    ];
    let mut site = Site::new(Variant::A).await;
    site.provider = simulator_with(Options {
        key: Some(crate::support::binary::KEY.into()),
        ..Options::default()
    })
    .await;
    let ids = ["sim-ready-1", "sim-nopreview-1"];
    site.app.insert_processing(&ids).await;
    let doctors = cases.map(|(_, wrong, _)| wrong(site.doctor()).run());
    let doctors = futures_util::future::join_all(doctors).await;
    for ((name, wrong, code), doctor) in cases.into_iter().zip(doctors) {
        let (said, log) = (&doctor.stdout, &doctor.stderr);
        assert_eq!(doctor.code, code, "{name}: {said}\n{log}");
        assert_eq!(doctor.report()["exit_code"], code, "{name}");
        assert!(!states(&findings(&doctor), "error").is_empty());
        let pass = wrong(site.sync_once()).run().await;
        assert_eq!(pass.code, code, "{name}: {}", pass.stderr);
    }
}

/// Tables with the right columns to which no pass could write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn detects_a_table_that_cannot_be_updated() {
    const POSTGRES: [(&str, &str); 6] = [
        (
            "a view of a join",
            "ALTER TABLE voices RENAME TO one;
             CREATE VIEW voices AS SELECT one.* FROM one CROSS JOIN (VALUES (1)) other",
        ),
        (
            "a materialized view",
            "ALTER TABLE voices RENAME TO one; CREATE MATERIALIZED VIEW voices AS SELECT * FROM one",
        ),
        (
            "a rule",
            "CREATE RULE quiet AS ON UPDATE TO voices DO INSTEAD NOTHING",
        ),
        (
            "a generated column",
            "ALTER TABLE voices DROP completed_at;
             ALTER TABLE voices ADD completed_at timestamp GENERATED ALWAYS AS (NULL) STORED",
        ),
        (
            "a preview in JSON",
            "ALTER TABLE voices ALTER preview_url TYPE json USING NULL",
        ),
        (
            "several previews",
            "ALTER TABLE voices ALTER preview_url TYPE text[] USING NULL",
        ),
    ];
    let postgres = POSTGRES.map(|case| (Variant::B, case));
    let view = "ALTER TABLE voices RENAME TO one; CREATE VIEW voices AS SELECT * FROM one";
    let sqlite = (Variant::E36, ("a view", view));
    for (variant, (name, ddl)) in postgres.into_iter().chain([sqlite]) {
        let site = Site::new(variant).await;
        site.app.insert_processing(&["sim-ready-1"]).await;
        site.app.execute(ddl).await;
        let ended = site.doctor().run().await;
        assert_eq!(ended.code, 78, "{name}: {}", ended.stdout);
        said(&ended, "update", "error");
        said(&ended, "backlog", "ok");
        let pass = site.sync_once().run().await;
        assert_eq!(pass.code, 78, "{name}: {}", pass.stderr);
    }
    let rule = "CREATE RULE loud AS ON UPDATE TO voices DO ALSO NOTIFY voices";
    for ddl in [view, rule] {
        let site = Site::new(Variant::B).await;
        site.app.insert_processing(&["sim-ready-1"]).await;
        site.app.execute(ddl).await;
        says(&site, "update", "ok").await;
        site.sync_once().run().await.expect_code(0);
        assert_eq!(site.app.row("sim-ready-1").await.status, "completed");
    }
}

/// Column types that cannot hold a status, and one column with two meanings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejects_columns_that_cannot_hold_the_written_values() {
    for sql_type in ["smallint", "boolean", "text[]"] {
        let site = Site::new(Variant::B).await;
        site.app
            .execute(&format!(
                "ALTER TABLE voices ALTER status DROP DEFAULT;
                 ALTER TABLE voices ALTER status TYPE {sql_type} USING NULL"
            ))
            .await;
        for ended in [site.doctor().run().await, site.sync_once().run().await] {
            ended.expect_code(78);
            let whole = format!("{}{}", ended.stdout, ended.stderr);
            assert!(whole.contains("--status-values"), "{whole}");
        }
        if sql_type == "smallint" {
            let numbers = "processing=1,completed=2,failed=3";
            let numbered = site.doctor().args(&["--status-values", numbers]);
            numbered.run().await.expect_code(0);
        }
    }
    let site = Site::new(Variant::E36).await;
    let names = ["--columns", "preview_url=Status"];
    for command in [site.doctor(), site.sync_once()] {
        let ended = command.args(&names).run().await;
        ended.expect_code(78);
        let whole = format!("{}{}", ended.stdout, ended.stderr);
        assert!(whole.contains("two different things"), "{whole}");
    }
}

/// Columns that the role may not read are listed with the other privileges, and earlier findings are shown before the
/// error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_each_missing_privilege() {
    let site = Site::new(Variant::A).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    site.sync_once().run().await.expect_code(0);
    let role = format!("reads_some_{}", Uuid::new_v4().simple());
    site.app
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'runs';
             GRANT USAGE ON SCHEMA voice_sync TO {role};
             GRANT SELECT ON voice_sync.migrations TO {role};
             GRANT SELECT (id, elevenlabs_voice_id, status, preview_url, completed_at), UPDATE
                 ON voices TO {role};"
        ))
        .await;
    let (_, host) = site.app.url.rsplit_once('@').expect("a login");
    let url = format!("postgresql://{role}:runs@{host}");
    for column in ["user_id", "created_at"] {
        let ended = site.doctor().env("DATABASE_URL", &url).run().await;
        ended.expect_code(78);
        let grant = format!("GRANT SELECT ON \"voices\" TO {role};");
        assert!(said(&ended, "configuration", "error").contains(&grant));
        site.app
            .execute(&format!("GRANT SELECT ({column}) ON voices TO {role}"))
            .await;
    }
    let ended = site.doctor().env("DATABASE_URL", &url).run().await;
    ended.expect_code(78);
    let advice = said(&ended, "privileges", "error");
    assert!(advice.contains("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES"));
    said(&ended, "second poller", "error");
    said(&ended, "obstacles", "ok");
    site.app
        .execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_count_is_a_warning_and_not_an_error() {
    let site = Site::new(Variant::B).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    site.sync_once().run().await.expect_code(0);
    site.app
        .execute(
            "CREATE FUNCTION slow() RETURNS bool LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(3); RETURN true; END $$;
             UPDATE voices SET completed_at = completed_at + interval '1 second';
             ALTER TABLE voices RENAME TO one;
             CREATE VIEW voices AS SELECT * FROM one WHERE status = 'processing' OR slow();
             DO $$ BEGIN
                 EXECUTE format('ALTER DATABASE %I SET statement_timeout = 1500', current_database());
             END $$",
        )
        .await;
    site.app.insert_processing(&["sim-ready-2"]).await;
    let ended = site.doctor().run().await;
    ended.expect_code(0);
    said(&ended, "second poller", "warning");
    site.sync_once().run().await.expect_code(0);
}

/// Root could write to the file in spite of its mode, so root's capabilities are dropped.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn detects_an_sqlite_file_that_is_not_writable() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    let site = Site::new(Variant::E36).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    site.app.execute("PRAGMA journal_mode = delete").await;
    let directory = site.app.directory().to_owned();
    let own = std::fs::metadata("/proc/self").expect("a process");
    for (what, mode) in [(directory.join("app.db"), 0o444), (directory, 0o555)] {
        let set = |mode| std::fs::set_permissions(&what, std::fs::Permissions::from_mode(mode));
        let before = std::fs::metadata(&what).expect("is there").permissions();
        set(mode).expect("is ours");
        let plain = |command: VoiceSync| match own.uid() {
            0 => command.through(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"]),
            _ => command,
        };
        let ended = plain(site.doctor()).run().await;
        let pass = plain(site.sync_once()).run().await;
        assert_eq!(ended.code, pass.code, "{}\n{}", ended.stdout, pass.stderr);
        assert_ne!(ended.code, 0, "{}", ended.stdout);
        std::fs::set_permissions(&what, before).expect("is ours");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_own_tables_that_are_missing_or_outdated() {
    let app = App::new(Variant::A).await;
    let provider = simulator().await;
    let doctor = || {
        VoiceSync::new(&["doctor"])
            .env("DATABASE_URL", &app.url)
            .env("ELEVENLABS_BASE_URL", provider.url())
    };
    let ended = doctor().run().await;
    ended.expect_code(78);
    assert!(said(&ended, "own tables", "error").contains("voice-sync migrate"));
    said(&ended, "provider", "ok");
    said(
        &doctor().arg("--auto-migrate").run().await,
        "own tables",
        "ok",
    );
    VoiceSync::new(&["migrate"])
        .env("DATABASE_URL", &app.url)
        .run()
        .await
        .expect_code(0);
    said(&doctor().run().await, "own tables", "ok");
    app.execute("DELETE FROM voice_sync.migrations WHERE version > 1")
        .await;
    let ended = doctor().run().await;
    ended.expect_code(78);
    assert!(said(&ended, "own tables", "error").contains("of version 1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suggests_adoption_for_a_table_without_status_columns() {
    let ddl = "CREATE TABLE voices (id char(36) PRIMARY KEY, user_id char(36),
                                    elevenlabs_voice_id varchar(100), created_at timestamp)";
    for app in [
        App::postgres(Variant::B, ddl).await,
        App::sqlite(Variant::E36, ddl).await,
    ] {
        let site = Site::on(app).await;
        let ended = site.doctor().run().await;
        ended.expect_code(78);
        assert!(said(&ended, "configuration", "error").contains("migrate --adopt"));
        let adopted = VoiceSync::new(&["migrate", "--adopt"]).env("DATABASE_URL", &site.app.url);
        adopted.run().await.expect_code(0);
        let ended = site.doctor().run().await;
        ended.expect_code(0);
        said(&ended, "index", "ok");
    }
}

/// Starts with a role that may only log in, and applies the suggested grants until doctor and a pass succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suggested_grants_are_sufficient() {
    for (table, schema) in [("voices", "public"), ("\"Other One\".voices", "Other One")] {
        let site = Site::new(Variant::A).await;
        if schema != "public" {
            site.app
                .execute("CREATE SCHEMA \"Other One\"; ALTER TABLE voices SET SCHEMA \"Other One\"")
                .await;
        }
        let role = format!("Least-{}", Uuid::new_v4().simple());
        site.app
            .execute(&format!("CREATE ROLE \"{role}\" LOGIN PASSWORD 'runs'"))
            .await;
        let (_, host) = site.app.url.rsplit_once('@').expect("a login");
        let url = format!("postgresql://{role}:runs@{host}");
        let mut steps = 0;
        loop {
            let as_role = |command: VoiceSync| {
                command
                    .env("DATABASE_URL", &url)
                    .args(&["--table", &table.replace('"', "")])
            };
            let ended = as_role(site.doctor()).run().await;
            let pass = as_role(site.sync_once()).run().await;
            assert_eq!(ended.code, pass.code, "{}\n{}", ended.stdout, pass.stderr);
            let findings = findings(&ended);
            let Some(broken) = states(&findings, "error").first().copied() else {
                break;
            };
            let text = format!("{} {}", broken["says"], broken["advice"]).replace("\\\"", "\"");
            let from = text
                .find("GRANT ")
                .unwrap_or_else(|| panic!("no GRANT in {text}"));
            let to = text.rfind(';').expect("an end");
            site.app.execute(&text[from..to]).await;
            steps += 1;
            assert!(steps < 6, "{text}");
        }
        assert!(steps > 1);
        site.app
            .execute(&format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\""))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warns_of_triggers_constraints_and_row_security_on_postgresql() {
    let site = Site::new(Variant::B).await;
    says(&site, "obstacles", "ok").await;
    site.app
        .execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'no'; END $$;
             CREATE TRIGGER \"no way\" BEFORE UPDATE ON voices FOR EACH ROW EXECUTE FUNCTION refuse();
             ALTER TABLE voices ADD CONSTRAINT known CHECK (status IN ('processing', 'completed', 'failed'));
             ALTER TABLE voices ADD CONSTRAINT linked
                 CHECK (status <> 'completed' OR preview_url IS NOT NULL OR status = 'failed');
             CREATE DOMAIN short AS varchar CONSTRAINT terse CHECK (length(VALUE) < 9);
             ALTER TABLE voices ALTER preview_url TYPE short;
             CREATE TABLE statuses (word varchar(20) PRIMARY KEY);
             INSERT INTO statuses VALUES ('processing');
             ALTER TABLE voices ADD CONSTRAINT listed FOREIGN KEY (status) REFERENCES statuses;
             ALTER TABLE voices ADD CONSTRAINT young CHECK (completed_at < '2026-01-01');",
        )
        .await;
    let said = says(&site, "obstacles", "warning").await;
    for word in [
        "trigger \"no way\"",
        "constraint young",
        "constraint linked",
        "constraint terse",
        "constraint listed",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("known"), "it allows what is written: {said}");

    let role = format!("sees_nothing_{}", Uuid::new_v4().simple());
    site.app
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'runs';
             GRANT USAGE ON SCHEMA voice_sync TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA voice_sync TO {role};
             GRANT SELECT, UPDATE ON voices TO {role};
             ALTER TABLE voices ENABLE ROW LEVEL SECURITY;"
        ))
        .await;
    let (_, host) = site.app.url.rsplit_once('@').expect("a login");
    let url = format!("postgresql://{role}:runs@{host}");
    let ended = site.doctor().env("DATABASE_URL", &url).run().await;
    ended.expect_code(0);
    let advice = format!("ALTER ROLE {role} BYPASSRLS");
    assert!(self::said(&ended, "row security", "warning").contains(&advice));
    site.app.execute(&advice).await;
    let ended = site.doctor().env("DATABASE_URL", &url).run().await;
    self::said(&ended, "row security", "ok");
    site.app
        .execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warns_of_triggers_checks_and_journal_mode_on_sqlite() {
    let site = Site::new(Variant::E36).await;
    site.app
        .execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON voices BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .await;
    assert!(says(&site, "obstacles", "warning").await.contains("refuse"));
    for (check, state) in [
        ("status IN ('processing', 'completed', 'failed')", "ok"),
        ("Status IN ('processing', 'completed')", "warning"),
        ("name <> ''", "ok"),
        ("(length(preview_url) < 9)", "warning"),
    ] {
        let last = "completed_at DATETIME";
        let ddl = sqlite_ddl(36).replace(last, &format!("{last}, CHECK ({check})"));
        let site = Site::on(App::sqlite(Variant::E36, &ddl).await).await;
        says(&site, "obstacles", state).await;
    }
    let doctor = site.doctor();
    site.app.execute("PRAGMA journal_mode = delete").await;
    let ended = doctor.run().await;
    assert!(said(&ended, "database", "warning").contains("journal_mode = wal"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suggests_a_working_index_statement_for_a_large_table() {
    for variant in [Variant::D, Variant::E36] {
        let site = Site::new(variant).await;
        site.app
            .execute(match site.app.pool {
                Pool::Postgres(_) => {
                    "INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
                     SELECT gen_random_uuid(), gen_random_uuid(), n, n, 'completed'
                     FROM generate_series(1, 30000) n"
                }
                Pool::Sqlite(_) => {
                    "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 20000)
                     INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
                     SELECT printf('%036d', n), 'u', n, n, 'completed' FROM s"
                }
            })
            .await;
        let said = says(&site, "index", "warning").await;
        let from = said.find("CREATE INDEX").expect("a statement");
        assert_eq!(
            said.contains("CONCURRENTLY"),
            matches!(site.app.pool, Pool::Postgres(_))
        );
        site.app.execute(&said[from..]).await;
        says(&site, "index", "ok").await;
    }
}

/// Indexes that look as if they covered the voices in processing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ignores_indexes_that_do_not_cover_voices_in_processing() {
    for variant in [Variant::B, Variant::D, Variant::E36] {
        let site = Site::new(variant).await;
        let many = match site.app.pool {
            Pool::Postgres(_) => {
                "DROP INDEX IF EXISTS ix_voices_status;
                 INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
                 SELECT gen_random_uuid(), gen_random_uuid(), n, n, 'completed'
                 FROM generate_series(1, 30000) n"
            }
            Pool::Sqlite(_) => {
                "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 20000)
                 INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
                 SELECT printf('%036d', n), 'u', n, n, 'completed' FROM s"
            }
        };
        site.app.execute(many).await;
        site.app
            .execute(
                "CREATE INDEX one ON voices (id) WHERE status = 'failed';
                 CREATE INDEX two ON voices (id) WHERE status <> 'processing';
                 CREATE INDEX three ON voices (status) WHERE name = 'processing';
                 CREATE INDEX four ON voices (name, status)",
            )
            .await;
        // There is none of this kind for enums.
        if variant == Variant::B {
            site.app
                .execute("CREATE INDEX five ON voices USING brin (status)")
                .await;
        }
        says(&site, "index", "warning").await;
        site.app
            .execute("CREATE INDEX six ON voices (name) WHERE status = 'processing'")
            .await;
        says(&site, "index", "ok").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suggests_index_statements_for_partitions_and_invalid_indexes() {
    let ddl = "
        CREATE TABLE voices (id uuid, user_id uuid, elevenlabs_voice_id varchar(100), status varchar(20),
                             preview_url text, completed_at timestamp) PARTITION BY HASH (id);
        CREATE TABLE voices_0 PARTITION OF voices FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE voices_1 PARTITION OF voices FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO voices (id, elevenlabs_voice_id, status)
        SELECT gen_random_uuid(), n, 'completed' FROM generate_series(1, 100000) n";
    let site = Site::on(App::postgres(Variant::B, ddl).await).await;
    let said = says(&site, "index", "warning").await;
    let from = said.find("CREATE INDEX").expect("a statement");
    let statements: Vec<_> = said[from..].split_inclusive(';').collect();
    assert_eq!(statements.len(), 2, "{said}");
    for statement in statements {
        site.app.execute(statement).await;
    }
    says(&site, "index", "ok").await;

    let site = Site::new(Variant::D).await;
    site.app
        .execute(
            "INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
             SELECT gen_random_uuid(), gen_random_uuid(), n, n, 'completed'
             FROM generate_series(1, 30000) n;
             CREATE INDEX ix_voices_processing ON voices (id) WHERE status = 'processing';
             UPDATE pg_index SET indisvalid = false
             WHERE indexrelid = 'ix_voices_processing'::regclass",
        )
        .await;
    let said = says(&site, "index", "warning").await;
    let from = said.find("DROP INDEX CONCURRENTLY").expect("a statement");
    for statement in said[from..].split_inclusive(';') {
        site.app.execute(statement).await;
    }
    says(&site, "index", "ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn detects_a_second_poller() {
    for variant in [Variant::A, Variant::B, Variant::E32, Variant::E36] {
        let site = Site::new(variant).await;
        site.app.insert_processing(&["sim-ready-1"]).await;
        site.sync_once().run().await.expect_code(0);
        says(&site, "second poller", "ok").await;
        site.app.insert_processing(&["sim-ready-2"]).await;
        let now = match site.app.pool {
            Pool::Postgres(_) => "now() AT TIME ZONE 'UTC' + interval '1 second'",
            Pool::Sqlite(_) => "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+1 second')",
        };
        site.app
            .execute(&format!(
                "UPDATE voices SET status = 'completed', completed_at = {now}
                 WHERE elevenlabs_voice_id = 'sim-ready-2'"
            ))
            .await;
        let said = says(&site, "second poller", "warning").await;
        assert!(said.starts_with("1 voices"), "{variant:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_provider_problems() {
    let mut site = Site::new(Variant::A).await;
    says(&site, "provider", "ok").await;
    site.app
        .insert_processing(&["sim-unlisted-1", "sim-ready-1", "sim-missing-1"])
        .await;
    let ended = site.doctor().run().await;
    ended.expect_code(0);
    assert!(said(&ended, "lookups", "warning").contains("does not return 1 of 3"));
    assert!(said(&ended, "voices", "warning").contains("1 of 3"));
    said(
        &site.doctor().args(&["--lookup", "single"]).run().await,
        "lookups",
        "ok",
    );
    site.provider = simulator_with(Options {
        list_enabled: false,
        ..Options::default()
    })
    .await;
    assert!(says(&site, "lookups", "warning").await.contains("no list"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_a_key_of_another_workspace() {
    let site = Site::new(Variant::A).await;
    let ids: Vec<_> = (0..12).map(|n| format!("sim-missing-{n}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    site.app.insert_processing(&ids).await;
    let ended = site.doctor().run().await;
    ended.expect_code(77);
    assert!(said(&ended, "voices", "error").contains("12 of 12"));
    site.sync_once().run().await.expect_code(77);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_no_request_while_the_breaker_is_open() {
    for variant in [Variant::A, Variant::E36] {
        let site = Site::new(variant).await;
        site.app.insert_processing(&["sim-ready-1"]).await;
        let away = |command: VoiceSync| command.env("ELEVENLABS_BASE_URL", "http://127.0.0.1:1");
        away(site.sync_once()).run().await.expect_code(75);
        let ended = away(site.doctor()).run().await;
        ended.expect_code(75);
        said(&ended, "breaker", "error");
        assert!(said(&ended, "provider", "warning").contains("not checked"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_run_suggests_migrate_for_outdated_own_tables() {
    let site = Site::new(Variant::E36).await;
    site.app
        .execute("DELETE FROM voice_sync_migrations WHERE version > 1")
        .await;
    let dry = site.sync_once().args(&["--dry-run"]).run().await;
    dry.expect_code(78);
    assert!(dry.stderr.contains("voice-sync migrate"), "{}", dry.stderr);
    assert!(!dry.stderr.contains("--auto-migrate"), "{}", dry.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_event_bus_problems() {
    let site = Site::new(Variant::A).await;
    let none = site.doctor().without("REDIS_URL");
    said(&none.run().await, "event bus", "warning");
    let meant = site
        .doctor()
        .without("REDIS_URL")
        .args(&["--events", "none"]);
    said(&meant.run().await, "event bus", "ok");
    let most = u64::try_from(i64::MAX).expect("it is positive");
    for (maxlen, code) in [(most, 0), (most + 1, 2)] {
        let maxlen = maxlen.to_string();
        let ended = site.doctor().args(&["--event-maxlen", &maxlen]).run().await;
        ended.expect_code(code);
    }
    let channels = site.doctor().args(&["--events", "pubsub"]).run().await;
    said(&channels, "streams", "warning");

    let key = format!("{}voice.created", site.bus.prefix);
    let mut redis = site.bus.connection.clone();
    let set: () = redis::cmd("SET")
        .arg(&key)
        .arg("mine")
        .query_async(&mut redis)
        .await
        .expect("is set");
    let () = set;
    let queue = async |key: &str| site.doctor().args(&["--queue", key]).run().await;
    said(
        &queue(&format!("{}queue", site.bus.prefix)).await,
        "queue",
        "ok",
    );
    assert!(said(&queue(&key).await, "queue", "warning").contains("holds a string"));
    site.app.insert_processing(&["sim-ready-1"]).await;
    let ended = site.doctor().run().await;
    ended.expect_code(75);
    assert!(said(&ended, "streams", "error").contains(&key));
    site.sync_once().run().await.expect_code(75);
    assert!(
        says(&site, "outbox", "warning")
            .await
            .starts_with("1 event waits")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_a_redis_user_that_may_not_publish() {
    let site = Site::new(Variant::A).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    let user = format!("reader-{}", Uuid::new_v4().simple());
    let mut redis = site.bus.connection.clone();
    let acl = |words: &str| {
        let mut command = redis::cmd("ACL");
        command.arg(words.split(' ').collect::<Vec<_>>());
        command
    };
    let rules = format!("SETUSER {user} on >word ~* &* +@all -xadd -publish");
    let () = acl(&rules).query_async(&mut redis).await.expect("is made");
    let (_, host) = site.bus.url.split_once("://").expect("a URL");
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let url = format!("redis://{user}:word@{host}");
    for kind in ["stream", "pubsub"] {
        let as_user = |command: VoiceSync| command.env("REDIS_URL", &url).args(&["--events", kind]);
        let ended = as_user(site.doctor()).run().await;
        ended.expect_code(75);
        let said = said(&ended, "event bus", "error");
        assert!(said.contains("no permissions"), "{said}");
        as_user(site.sync_once()).run().await.expect_code(75);
    }
    let gone = format!("DELUSER {user}");
    let _: i64 = acl(&gone).query_async(&mut redis).await.expect("is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_changes_nothing() {
    for variant in [Variant::A, Variant::E32] {
        let app = App::new(variant).await;
        app.insert_processing(&["sim-ready-1", "sim-banned-1"])
            .await;
        let (before, provider) = (app.rows().await, simulator().await);
        let ended = VoiceSync::new(&["doctor", "--auto-migrate"])
            .env("DATABASE_URL", &app.url)
            .env("ELEVENLABS_BASE_URL", provider.url())
            .run()
            .await;
        ended.expect_code(0);
        assert_eq!(app.rows().await, before);
        let own = app
            .number(match app.pool {
                Pool::Postgres(_) => {
                    "SELECT count(*) FROM pg_namespace WHERE nspname = 'voice_sync'"
                }
                Pool::Sqlite(_) => {
                    "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'voice_sync_%'"
                }
            })
            .await;
        assert_eq!(own, 0, "{variant:?}");
        sync_once(&app.url, &provider.url())
            .arg("--auto-migrate")
            .run()
            .await
            .expect_code(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warns_of_missing_optional_columns() {
    let ddl =
        "CREATE TABLE voices (id char(36) PRIMARY KEY, elevenlabs_voice_id text, status text)";
    for app in [
        App::postgres(Variant::B, ddl).await,
        App::sqlite(Variant::E36, ddl).await,
    ] {
        let ended = Site::on(app).await.doctor().run().await;
        ended.expect_code(0);
        let findings = findings(&ended);
        let columns: Vec<_> = states(&findings, "warning")
            .into_iter()
            .filter(|finding| finding["check"] == "columns")
            .collect();
        assert_eq!(columns.len(), 3, "{columns:#?}");
        assert_ne!(columns[0]["advice"], json!(null));
    }
}

/// If the application's naive times are local times of another zone, `doctor` detects it by the column default, by rows
/// in the future, or by when rows were first seen, and accepts the zone's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn detects_naive_times_of_another_time_zone() {
    for (zone, hours) in [("America/Los_Angeles", -8), ("Asia/Tokyo", 9)] {
        let site = Site::new(Variant::A).await;
        site.sync_once().run().await.expect_code(0);
        said(&site.doctor().run().await, "time zone", "ok");
        let app = &site.app;
        app.execute(&format!(
            "ALTER TABLE voices ALTER created_at SET DEFAULT now();
             DO $$ BEGIN
                 EXECUTE format('ALTER DATABASE %I SET timezone = %L', current_database(), '{zone}');
             END $$"
        ))
        .await;
        let by_default = says(&site, "time zone", "warning").await;
        assert!(by_default.contains(zone), "{by_default}");
        let doctor = |zone: &str| site.doctor().env("VOICE_SYNC_NAIVE_TIMEZONE", zone).run();
        said(&doctor(zone).await, "time zone", "ok");
        let unknown = doctor("Mars/Olympus").await;
        unknown.expect_code(78);
        assert!(
            unknown.stdout.contains("pg_timezone_names"),
            "{}",
            unknown.stdout
        );
        let malformed = doctor("a'b").await;
        malformed.expect_code(2);

        // Without any default to tell by: rows, some of which come while voice-sync runs.
        app.execute("ALTER TABLE voices ALTER created_at DROP DEFAULT")
            .await;
        let insert = async |ids: &[&str]| {
            for id in ids {
                app.execute(&format!(
                    "INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, created_at)
                     SELECT gen_random_uuid(), id, '{id}', 'new', now() AT TIME ZONE '{zone}' FROM users LIMIT 1"
                ))
                .await;
            }
        };
        app.execute("INSERT INTO users (id) VALUES (gen_random_uuid())")
            .await;
        insert(&["sim-pvctraining-0"]).await;
        site.sync_once().run().await.expect_code(0);
        app.age_own_tables(2 * 60 * 60).await;
        app.age_application(2 * 60 * 60).await;
        insert(&[
            "sim-pvctraining-1",
            "sim-pvctraining-2",
            "sim-pvctraining-3",
        ])
        .await;
        site.sync_once().run().await.expect_code(0);
        let by_rows = says(&site, "time zone", "warning").await;
        let hint = if hours > 0 {
            "in the future"
        } else {
            "first saw"
        };
        assert!(by_rows.contains(hint), "{zone}: {by_rows}");
        said(&doctor(zone).await, "time zone", "ok");

        // What is written is of the same zone.
        insert(&["sim-ready-1"]).await;
        let run = site
            .sync_once()
            .env("VOICE_SYNC_NAIVE_TIMEZONE", zone)
            .run()
            .await;
        run.expect_code(0);
        let apart = format!(
            "SELECT abs(extract(epoch FROM completed_at - now() AT TIME ZONE '{zone}'))::bigint FROM voices
             WHERE status = 'completed'"
        );
        assert!(app.number(&apart).await < 60);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn detects_times_in_the_future_on_sqlite() {
    let site = Site::new(Variant::E32).await;
    site.app.insert_processing(&["sim-pvctraining-1"]).await;
    site.sync_once().run().await.expect_code(0);
    said(&site.doctor().run().await, "time zone", "ok");
    site.app
        .execute("UPDATE voices SET created_at = datetime(created_at, '+9 hours')")
        .await;
    assert!(
        says(&site, "time zone", "warning")
            .await
            .contains("in the future")
    );
    let named = site
        .doctor()
        .env("VOICE_SYNC_NAIVE_TIMEZONE", "Asia/Tokyo")
        .run()
        .await;
    named.expect_code(78);
}
