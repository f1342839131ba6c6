//! Weeks of an application's life, in simulated time: it clones, clones anew and loses voices, the provider changes the
//! form of its errors, a proxy in between answers in its place, and the key is of another workspace for a while.
//!
//! Passes are of every kind, the daemon's included; naive times are of five zones; rows stand in statuses of the
//! application's own.
//!
//! The oracle knows the truth at the provider: a voice that exists there and is not failed is never failed, except by an
//! age that voice-sync witnessed, or as one of the nine missing voices a day that are too few to blame the key for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;
use voice_sync_simulator::{Answer, Request};

use crate::budget;
use crate::support::app::{App, NewVoice, Pool, Variant};
use crate::support::binary::{KEY, VoiceSync, sync_once};
use crate::support::daemon::{Daemon, daemon};
use crate::support::fates::simulator;

const DAY_S: u64 = 24 * 60 * 60;
/// Missing voices that may fail within a day without the key being blamed.
const FLOOR: usize = 9;
/// Cloned, and deleted at the provider, when all other trouble is over.
const GONE: [&str; 2] = ["sim-ready-gone1", "sim-nopreview-gone2"];
const OTHER_KEY: &str = "a key of another workspace";

/// How errors of the API look.
#[derive(Debug, Clone, Copy)]
enum Form {
    Legacy,
    Current,
    Both,
}

/// What answers in the provider's place, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Nothing,
    Proxy(u16),
}

/// The truth at the provider.
struct Truth {
    form: Form,
    between: Between,
    /// Voices that no longer exist.
    lost: BTreeSet<String>,
    /// Voices that the other workspace has as well.
    shared: BTreeSet<String>,
    in_other_workspace: bool,
}

impl Truth {
    fn knows(&self, id: &str) -> bool {
        !self.lost.contains(id) && (!self.in_other_workspace || self.shared.contains(id))
    }

    fn voice(id: &str) -> serde_json::Value {
        match id.split('-').nth(1) {
            Some("ready") => {
                json!({"voice_id": id, "category": "cloned", "preview_url": "https://x/p"})
            }
            Some("nopreview") => json!({"voice_id": id, "category": "cloned"}),
            _ => json!({"voice_id": id, "category": "professional",
                        "fine_tuning": {"state": {"m": "fine_tuning"}}}),
        }
    }

    fn not_found(&self, id: &str) -> Answer {
        let code = "voice_not_found";
        let message = format!("A voice with the voice_id {id} was not found.");
        let detail = match self.form {
            Form::Legacy => json!({"status": code, "message": message}),
            Form::Current => json!({"type": "not_found", "code": code, "message": message,
                                    "request_id": "r", "param": null, "status": null}),
            Form::Both => json!({"code": code, "status": code, "message": message}),
        };
        let status = if matches!(self.form, Form::Legacy) {
            400
        } else {
            404
        };
        Answer::json(status, json!({"detail": detail}).to_string())
    }

    fn answer(&self, request: &Request) -> Answer {
        if let Between::Proxy(status) = self.between {
            return Answer::html(status, "Blocked");
        }
        if request.path == "/v2/voices" {
            let known = request.voice_ids.iter().filter(|id| self.knows(id));
            let voices: Vec<_> = known.map(|id| Self::voice(id)).collect();
            return Answer::json(
                200,
                json!({"voices": voices, "has_more": false}).to_string(),
            );
        }
        match request.voice_ids.first() {
            Some(id) if id.starts_with("sim-") && self.knows(id) => {
                Answer::json(200, Self::voice(id).to_string())
            }
            id => self.not_found(id.map_or("", String::as_str)),
        }
    }
}

/// A voice of the application, by its provider id.
struct Known {
    /// When a pass was first made while the row stood in processing with this id.
    witnessed_s: Option<u64>,
}

struct World {
    app: App,
    truth: Arc<Mutex<Truth>>,
    provider: voice_sync_simulator::Simulator,
    voices: BTreeMap<String, Known>,
    /// Rows in a status of the application's own.
    drafts: BTreeSet<String>,
    now_s: u64,
    number: usize,
    log: Vec<String>,
}

impl World {
    async fn new(variant: Variant) -> Self {
        let app = App::new(variant).await;
        drop(app.store().await);
        let provider = simulator().await;
        let truth = Arc::new(Mutex::new(Truth {
            form: Form::Legacy,
            between: Between::Nothing,
            lost: BTreeSet::new(),
            shared: BTreeSet::new(),
            in_other_workspace: false,
        }));
        let told = Arc::clone(&truth);
        provider.script(move |request| {
            Some(
                told.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .answer(request),
            )
        });
        Self {
            app,
            truth,
            provider,
            voices: BTreeMap::new(),
            drafts: BTreeSet::new(),
            now_s: 0,
            number: 0,
            log: Vec::new(),
        }
    }

    fn new_id(&mut self, rng: &mut Rng) -> String {
        self.number += 1;
        let fate = ["ready", "ready", "nopreview", "pvctraining"][rng.usize(..4)];
        let id = format!("sim-{fate}-{:05}", self.number);
        let mut truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        if rng.u8(..6) == 0 {
            truth.shared.insert(id.clone());
        }
        self.voices.insert(id.clone(), Known { witnessed_s: None });
        id
    }

    async fn clone_voices(&mut self, rng: &mut Rng) {
        let ids: Vec<_> = (0..rng.usize(1..12)).map(|_| self.new_id(rng)).collect();
        let is_draft = self.app.variant == Variant::E32 && rng.u8(..4) == 0;
        let status = if is_draft { "draft" } else { "processing" };
        let rows: Vec<_> = ids
            .iter()
            .map(|id| NewVoice {
                status,
                ..NewVoice::processing(id)
            })
            .collect();
        self.app.insert(&rows).await;
        let listed = format!("'{}'", ids.join("', '"));
        // A host that writes naive times in its own zone.
        let minutes = [-8 * 60, -3 * 60, 0, 5 * 60 + 30, 9 * 60][rng.usize(..5)];
        let moved = match (self.app.variant, &self.app.pool) {
            (Variant::D, _) => "created_at".to_owned(),
            (_, Pool::Postgres(_)) => format!("created_at + interval '{minutes} minutes'"),
            (_, Pool::Sqlite(_)) => {
                format!("strftime('%Y-%m-%d %H:%M:%f000', created_at, '{minutes} minutes')")
            }
        };
        self.app
            .execute(&format!(
                "UPDATE voices SET created_at = {moved} WHERE elevenlabs_voice_id IN ({listed})"
            ))
            .await;
        if is_draft {
            self.drafts.extend(ids);
        }
    }

    /// The application has some drafts cloned after all.
    async fn clone_drafts(&mut self) {
        let drafts = std::mem::take(&mut self.drafts);
        for id in drafts {
            self.app
                .execute(&format!(
                    "UPDATE voices SET status = 'processing' WHERE elevenlabs_voice_id = '{id}' AND status = 'draft'"
                ))
                .await;
        }
    }

    /// What is none of voice-sync's business stays as it is.
    async fn check_drafts(&self) {
        let rows = self.app.rows().await;
        for id in &self.drafts {
            assert_eq!(rows[id].status, "draft", "{id}\n{}", self.log.join("\n"));
        }
    }

    /// The application clones a finished voice anew, and clears when it was completed, or does not.
    async fn clone_anew(&mut self, rng: &mut Rng) {
        let rows = self.app.rows().await;
        let finished: Vec<_> = rows
            .iter()
            .filter(|(_, row)| ["completed", "failed"].contains(&row.status.as_str()))
            .collect();
        let Some((old, _)) = rng.choice(finished.iter()).copied() else {
            return;
        };
        let new = self.new_id(rng);
        let cleared = if rng.bool() {
            ", completed_at = NULL"
        } else {
            ""
        };
        self.app
            .execute(&format!(
                "UPDATE voices SET elevenlabs_voice_id = '{new}', status = 'processing'{cleared}
                 WHERE elevenlabs_voice_id = '{old}'"
            ))
            .await;
    }

    fn change_provider(&mut self, rng: &mut Rng) {
        let ids: Vec<_> = self.voices.keys().cloned().collect();
        let mut truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        match rng.u8(..8) {
            0 => truth.form = Form::Legacy,
            1 => truth.form = Form::Current,
            2 => truth.form = Form::Both,
            3 => truth.between = Between::Proxy([401, 403, 404, 405, 407, 503][rng.usize(..6)]),
            4 => truth.in_other_workspace = true,
            5 => {
                let lost = rng.choice(ids.iter());
                truth.lost.extend(lost.cloned());
            }
            _ => {
                truth.between = Between::Nothing;
                truth.in_other_workspace = false;
            }
        }
    }

    /// A pass of any kind. Returns those that failed in it.
    async fn pass(&mut self, rng: &mut Rng) {
        let before = self.app.rows().await;
        let (other, between) = {
            let truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
            (truth.in_other_workspace, truth.between)
        };
        let kind: &[&str] = match rng.u8(..7) {
            0 => &["--due"],
            1 => &["--due", "--lookup=single"],
            2 => &["--lookup=single"],
            3 => &["--wait=300ms"],
            4 => &["daemon"],
            _ => &[],
        };
        let key = if other { OTHER_KEY } else { KEY };
        let (code, said) = match kind {
            ["daemon"] => self.daemon(key).await,
            _ => {
                let ended = sync_once(&self.app.url, &self.provider.url())
                    .args(kind)
                    .env("ELEVENLABS_API_KEY", key)
                    .run()
                    .await;
                (ended.code, format!("{}{}", ended.stdout, ended.stderr))
            }
        };
        self.log.push(format!(
            "{} s: {kind:?}, other workspace {other}, {between:?}: {code} {}",
            self.now_s,
            said.trim()
        ));
        assert!([0, 75, 77].contains(&code), "{}", self.log.join("\n"));
        for (id, row) in &before {
            if row.status == "processing"
                && let Some(known) = self.voices.get_mut(id)
            {
                known.witnessed_s.get_or_insert(self.now_s);
            }
        }
    }

    /// A daemon, until it has made a pass or ended by itself, or has nothing to do.
    async fn daemon(&self, key: &str) -> (i32, String) {
        let command = daemon(&self.app.url, &self.provider.url()).env("ELEVENLABS_API_KEY", key);
        let mut running = Daemon::start(command);
        for _ in 0..40 {
            if !running.is_running() || !running.said("pass finished").is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        if running.is_running() {
            running.signal("-TERM");
        }
        let code = running.ended().await;
        (code, running.log())
    }

    async fn sleep(&mut self, seconds: u32) {
        self.app.age_own_tables(seconds).await;
        self.app.age_application(seconds).await;
        self.now_s += u64::from(seconds);
    }

    /// Healthy voices that are failed now, and were not before.
    async fn wrongly_failed(&self, before: &BTreeSet<String>) -> Vec<String> {
        let truth = self
            .truth
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lost
            .clone();
        let rows = self.app.rows().await;
        let failed = rows.iter().filter(|(_, row)| row.status == "failed");
        let is_wrong = |id: &&String| {
            let witnessed = self.voices.get(*id).and_then(|known| known.witnessed_s);
            let age = witnessed.map_or(0, |at| self.now_s - at);
            let timed_out = id.starts_with("sim-nopreview") && age >= DAY_S;
            !truth.contains(*id) && !timed_out && !before.contains(*id)
        };
        failed.map(|(id, _)| id).filter(is_wrong).cloned().collect()
    }
}

impl World {
    /// All trouble is over, for two days: whoever is ready is completed, and whoever is lost has failed.
    async fn come_to_rest(&mut self) {
        {
            let mut truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
            truth.between = Between::Nothing;
            truth.in_other_workspace = false;
            truth.form = Form::Current;
            truth.lost.extend(GONE.map(str::to_owned));
        }
        self.clone_drafts().await;
        self.app.insert(&GONE.map(NewVoice::processing)).await;
        // Found beside the lost ones, so that these are believed to be lost.
        let others: Vec<_> = (0..200)
            .map(|n| format!("sim-pvctraining-other{n:05}"))
            .collect();
        let rows: Vec<_> = others.iter().map(NewVoice::processing).collect();
        self.app.insert(&rows).await;
        for _ in 0..12 {
            sync_once(&self.app.url, &self.provider.url()).run().await;
            self.sleep(4 * 3600).await;
        }
        let lost = self
            .truth
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lost
            .clone();
        for (id, row) in self.app.rows().await {
            let is_done = match (lost.contains(&id), id.split('-').nth(1)) {
                (true, _) => row.status != "processing",
                (false, Some("ready")) => row.status == "completed" || row.status == "failed",
                (false, _) => true,
            };
            assert!(is_done, "{id} is left: {row:?}\n{}", self.log.join("\n"));
        }
    }
}

async fn weeks(variant: Variant, steps: u64, rng: &mut Rng) {
    let mut world = World::new(variant).await;
    // Healthy voices that were failed as missing, each with the time.
    let mut failed: Vec<(u64, String)> = Vec::new();
    for _ in 0..steps {
        match rng.u8(..11) {
            0..=2 => world.clone_voices(rng).await,
            10 => world.clone_drafts().await,
            3..=4 => world.clone_anew(rng).await,
            5..=6 => world.change_provider(rng),
            _ => {}
        }
        for _ in 0..rng.usize(1..4) {
            let before = failed.iter().map(|(_, id)| id.clone()).collect();
            world.pass(rng).await;
            world.check_drafts().await;
            let wrong = world.wrongly_failed(&before).await;
            failed.extend(wrong.into_iter().map(|id| (world.now_s, id)));
            let today = failed.iter().filter(|(at, _)| at + DAY_S > world.now_s);
            assert!(
                today.clone().count() <= FLOOR,
                "healthy voices were failed: {:?}\n{}",
                today.collect::<Vec<_>>(),
                world.log.join("\n")
            );
            world.sleep(rng.u32(60..1200)).await;
        }
        if rng.u8(..4) == 0 {
            world.sleep(rng.u32(3600..30 * 3600)).await;
        }
    }
    for (_, id) in &failed {
        let failure = format!(
            "SELECT count(*) FROM {} WHERE provider_id = '{id}' AND failure = 'missing'",
            world.app.own("voices")
        );
        let known = format!(
            "SELECT count(*) FROM {} WHERE provider_id = '{id}'",
            world.app.own("voices")
        );
        let (missing, known) = (
            world.app.number(&failure).await,
            world.app.number(&known).await,
        );
        assert_eq!(
            missing,
            known,
            "{id} failed for another reason\n{}",
            world.log.join("\n")
        );
    }
    world.come_to_rest().await;
    println!(
        "{variant:?}: {} days, {} voices, {} healthy ones failed as missing",
        world.now_s / DAY_S,
        world.voices.len(),
        failed.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weeks_of_random_faults_fail_no_healthy_voice_on_sqlite() {
    let mut rng = crate::rng();
    for _ in 0..budget(1, 500) {
        weeks(Variant::E32, 60, &mut rng).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weeks_of_random_faults_fail_no_healthy_voice_on_postgresql() {
    let mut rng = crate::rng();
    for variant in [Variant::A, Variant::D] {
        for _ in 0..budget(1, 100) {
            weeks(variant, budget(30, 60), &mut rng).await;
        }
    }
}

/// Ten voices are found all the time, and others that the key does not know arrive in small numbers: each pass by
/// itself sees too few to blame the key.
async fn voices_arrive_in_sixes(variant: Variant, minutes: u32) {
    let app = App::new(variant).await;
    drop(app.store().await);
    let provider = simulator().await;
    let found: Vec<_> = (0..10).map(|n| format!("sim-pvctraining-{n}")).collect();
    let rows: Vec<_> = found.iter().map(NewVoice::processing).collect();
    app.insert(&rows).await;
    let mut codes = BTreeSet::new();
    for six in 0..10 {
        let ids: Vec<_> = (0..6).map(|n| format!("sim-missing-{six}{n}")).collect();
        let rows: Vec<_> = ids.iter().map(NewVoice::processing).collect();
        app.insert(&rows).await;
        for _ in 0..minutes {
            let ended = sync_once(&app.url, &provider.url())
                .args(&["--due"])
                .run()
                .await;
            codes.insert(ended.code);
            app.age_own_tables(60).await;
        }
    }
    for _ in 0..30 {
        sync_once(&app.url, &provider.url())
            .args(&["--due"])
            .run()
            .await;
        app.age_own_tables(60).await;
    }
    let failed = app
        .number("SELECT count(*) FROM voices WHERE CAST(status AS text) = 'failed'")
        .await;
    println!(
        "{variant:?}, six every {minutes} minutes: {failed} of 60 failed, exit codes {codes:?}"
    );
    assert!(failed <= FLOOR as i64, "{failed} of 60 failed");
    assert!(codes.contains(&77), "somebody is told: {codes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mass_absence_guard_covers_voices_that_arrive_in_small_groups() {
    let all = [(Variant::A, 1), (Variant::A, 20), (Variant::E32, 6)];
    for (variant, minutes) in all {
        voices_arrive_in_sixes(variant, minutes).await;
    }
}

/// Many missing voices do not block others: the daemon fails none of them, reports it, and continues while its key
/// finds voices. If its key finds none, the daemon ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_continues_during_a_mass_absence() {
    for (variant, missing) in [(Variant::A, 12), (Variant::E32, 12), (Variant::A, 150)] {
        let app = App::new(variant).await;
        drop(app.store().await);
        let provider = simulator().await;
        let mut ids: Vec<_> = (0..missing).map(|n| format!("sim-missing-{n}")).collect();
        ids.push("sim-nopreview-1".to_owned());
        let rows: Vec<_> = ids.iter().map(NewVoice::processing).collect();
        app.insert(&rows).await;
        let mut running = Daemon::start(daemon(&app.url, &provider.url()));
        running.wait_until_said("of another workspace").await;
        for round in 1..=4 {
            // The missing ones are due by themselves, too.
            app.age_schedule(600).await;
            app.insert_processing(&[&format!("sim-ready-{round}")])
                .await;
            running.wait_until(&app, "completed", round).await;
            app.age_own_tables(600).await;
        }
        running.wait_until(&app, "failed", 0).await;
        running.stop().await;

        app.execute("DELETE FROM voices WHERE CAST(status AS text) = 'completed' OR name LIKE '%nopreview%'")
            .await;
        app.age_own_tables(2 * 24 * 60 * 60).await;
        let mut hopeless = Daemon::start(daemon(&app.url, &provider.url()));
        assert_eq!(hopeless.ended().await, 77, "{}", hopeless.log());
        hopeless.wait_until(&app, "failed", 0).await;
    }
}

/// After `sync-once` has detected a mass absence, no kind of pass fails missing voices until voices are found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mass_absence_holds_for_every_kind_of_pass_until_voices_are_found() {
    for variant in [Variant::A, Variant::E32] {
        let app = App::new(variant).await;
        drop(app.store().await);
        let provider = simulator().await;
        let ids = (0..45).map(|n| match n {
            0..5 => format!("sim-nopreview-{n}"),
            _ => format!("sim-ready1h-{n}"),
        });
        let ids: Vec<_> = ids.collect();
        let rows: Vec<_> = ids.iter().map(NewVoice::processing).collect();
        app.insert(&rows).await;
        provider.script(|request| {
            let is_known = |id: &String| id.starts_with("sim-nopreview");
            match request.path.as_str() {
                "/v2/voices" => {
                    let voices = request.voice_ids.iter().filter(|id| is_known(id));
                    let voices: Vec<_> = voices.map(|id| json!({"voice_id": id})).collect();
                    Some(Answer::json(200, json!({"voices": voices}).to_string()))
                }
                _ if request.voice_ids.iter().all(is_known) => None,
                _ => Some(Answer::error(404, "voice_not_found", "not here")),
            }
        });
        let run = async |kind: &[&str]| {
            let ended = sync_once(&app.url, &provider.url()).args(kind).run().await;
            app.age_own_tables(60).await;
            ended
        };
        run(&[]).await.expect_code(77);
        let doctor = VoiceSync::new(&["doctor"])
            .env("DATABASE_URL", &app.url)
            .env("ELEVENLABS_BASE_URL", provider.url());
        let said = doctor.run().await.stdout;
        assert!(said.contains("missing voices"), "{said}");
        for minute in 0..40 {
            let kind: &[&str] = [
                &["--due"][..],
                &["--due", "--limit", "5"],
                &["--limit", "7"],
            ][minute % 3];
            let ended = run(kind).await;
            assert_eq!(ended.count("failed"), 0, "{}", ended.stdout);
        }
        let since = format!(
            "SELECT count(*) FROM {} WHERE mass_absence_since IS NOT NULL",
            app.own("provider")
        );
        assert_eq!(app.number(&since).await, 1, "{variant:?}");

        // Nothing but a look tells that it is over, and a pass looks when it misses a voice.
        app.insert(&[NewVoice::processing("sim-missing-0")]).await;
        provider.script(|_| None);
        run(&[]).await.expect_code(0);
        assert_eq!(app.number(&since).await, 0, "{variant:?}");
    }
}
