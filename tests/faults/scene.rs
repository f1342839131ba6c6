//! An application, a provider and an event bus, and what must hold of them in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use voice_sync_simulator::{Options, Simulator};

use crate::support::app::{App, NewVoice, Variant, row_id};
use crate::support::binary::{Ended, VoiceSync, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::{Outcome, outcome, simulator_with};

/// Fates that one pass decides.
pub(crate) const DECIDED: &[&str] = &["ready", "pvcfailed", "statuscompleted", "banned"];
/// As well as some that it does not decide. Few of those are missing, as many would trip the guard.
pub(crate) const MIXED: &[&str] = &[
    "ready",
    "nopreview",
    "banned",
    "statuscompleted",
    "pvctraining",
    "pvcfailed",
    "nopreview",
    "ready",
    "unlisted",
    "pvctraining",
    "missing",
    "banned",
    "nopreview",
    "ready",
    "pvctraining",
    "pvcready",
];

pub(crate) struct Scene {
    pub(crate) app: App,
    pub(crate) provider: Simulator,
    pub(crate) bus: Bus,
    voices: Vec<String>,
}

impl Scene {
    /// So many voices, each of one of these fates in turn.
    pub(crate) async fn new(variant: Variant, fates: &[&str], voices: usize) -> Self {
        Self::within(
            App::new(variant).await,
            fates,
            voices,
            Duration::from_millis(5),
        )
        .await
    }

    /// The same with an application that is there already, and a provider that takes its time.
    pub(crate) async fn within(app: App, fates: &[&str], voices: usize, latency: Duration) -> Self {
        drop(app.store().await);
        let provider = simulator_with(Options {
            latency,
            ..Options::default()
        })
        .await;
        let mut scene = Self {
            app,
            provider,
            bus: Bus::new().await,
            voices: Vec::new(),
        };
        scene.add(fates, voices).await;
        scene
    }

    /// More voices of these fates.
    pub(crate) async fn add(&mut self, fates: &[&str], voices: usize) {
        let before = self.voices.len();
        let ids: Vec<String> = (0..voices)
            .map(|n| format!("sim-{}-{:05}", fates[n % fates.len()], before + n))
            .collect();
        let rows: Vec<_> = ids.iter().map(NewVoice::processing).collect();
        self.app.insert(&rows).await;
        self.voices.extend(ids);
    }

    /// `sync-once` of all this.
    pub(crate) fn command(&self) -> VoiceSync {
        sync_once(&self.app.url, &self.provider.url())
            .publishing_to(&self.bus)
            .env("VOICE_SYNC_EVENT_MAXLEN", "1000000")
            .env("VOICE_SYNC_MISSING_AFTER", "1000h")
    }

    /// Runs once more, after all leases ran out and all pauses are over, and undisturbed.
    pub(crate) async fn recover(&self) -> Ended {
        self.app.age_own_tables(301).await;
        let ended = self.command().run().await;
        ended.expect_code(0);
        ended
    }

    /// Rows that are not where their fate sends them yet.
    pub(crate) async fn undecided(&self) -> i64 {
        let stay = self.voices.iter().filter(|id| status(id) == "processing");
        let stay = i64::try_from(stay.count()).expect("a number");
        let sql = "SELECT count(*) FROM voices WHERE status = 'processing'";
        self.app.number(sql).await - stay
    }

    /// Every row is where its fate sends it. Each that was moved has one event, which is on the bus
    /// at least once, and always the same; the others have none.
    pub(crate) async fn check(&self) {
        let rows = self.app.rows().await;
        assert_eq!(rows.len(), self.voices.len());
        let mut expected: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for (id, row) in rows {
            assert_eq!(row.status, status(&id), "{id}");
            let event_type = match outcome(&id) {
                Outcome::Completed => "voice.created",
                Outcome::Failed => "voice.updated",
                Outcome::Processing
                | Outcome::Missing
                | Outcome::SetAside
                | Outcome::Unavailable => continue,
            };
            let voices = expected.entry(event_type).or_default();
            voices.insert(row_id(&id).to_string());
        }
        for event_type in ["voice.created", "voice.updated"] {
            let mut bodies = BTreeMap::new();
            for event in self.bus.events(event_type).await {
                let id = event["event_id"].as_str().expect("an id").to_owned();
                if let Some(before) = bodies.insert(id, event.clone()) {
                    assert_eq!(before, event, "an event is the same on every publication");
                }
            }
            let told: BTreeSet<String> = bodies
                .values()
                .filter_map(|event| event["payload"]["voice_id"].as_str())
                .map(str::to_owned)
                .collect();
            let moved = expected.remove(event_type).unwrap_or_default();
            assert_eq!(bodies.len(), told.len(), "one event for each transition");
            assert!(told == moved, "{event_type} exactly where a row was moved");
            let recorded = format!(
                "SELECT count(*) FROM {} o LEFT JOIN {} b ON b.batch_id = o.batch_id
                 WHERE o.event_type = '{event_type}' AND b.published_at IS NOT NULL",
                self.app.own("outbox"),
                self.app.own("batches")
            );
            let recorded = self.app.number(&recorded).await;
            assert_eq!(recorded, moved.len() as i64, "no second transition");
        }
    }
}

/// The status that a voice's fate sends its row to.
fn status(id: &str) -> &'static str {
    match outcome(id) {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Processing | Outcome::Missing | Outcome::SetAside | Outcome::Unavailable => {
            "processing"
        }
    }
}
