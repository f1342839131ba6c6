//! Voices of every fate that the simulator knows, and what voice-sync must make of each.

use std::collections::BTreeMap;

use voice_sync_simulator::{Options, Simulator};

/// What must have become of a voice after one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Processing,
    Missing,
    SetAside,
    Unavailable,
}

/// Each fate by the word that a synthetic id tells it with, its outcome, and whether the list shows it.
pub(crate) const FATES: [(&str, Outcome, bool); 18] = [
    ("ready", Outcome::Completed, true),
    ("nopreview", Outcome::Processing, true),
    ("silent", Outcome::Processing, true),
    ("banned", Outcome::Failed, true),
    ("unverified", Outcome::Processing, true),
    ("pvcready", Outcome::Completed, true),
    ("pvcfailed", Outcome::Failed, true),
    ("pvctraining", Outcome::Processing, true),
    ("pvcunverified", Outcome::Processing, true),
    ("missing", Outcome::Missing, false),
    ("unlisted", Outcome::Completed, false),
    ("longpreview", Outcome::SetAside, true),
    ("nulpreview", Outcome::SetAside, true),
    ("statuscompleted", Outcome::Completed, true),
    ("statusfailed", Outcome::Failed, true),
    ("statusprocessing", Outcome::Processing, true),
    ("strange", Outcome::Completed, true),
    ("malformed", Outcome::Unavailable, false),
];

/// The outcome of a synthetic id.
pub(crate) fn outcome(provider_id: &str) -> Outcome {
    fate(provider_id).1
}

/// Whether the list shows a synthetic id as voice-sync can read it.
pub(crate) fn is_listed(provider_id: &str) -> bool {
    fate(provider_id).2
}

fn fate(provider_id: &str) -> (&'static str, Outcome, bool) {
    let word = provider_id.split('-').nth(1).expect("a synthetic id");
    *FATES
        .iter()
        .find(|(known, ..)| *known == word)
        .unwrap_or_else(|| panic!("fate of {provider_id}"))
}

/// How many of these ids come to each outcome.
pub(crate) fn tally(provider_ids: &[String]) -> BTreeMap<Outcome, u64> {
    let mut tally = BTreeMap::new();
    for id in provider_ids {
        *tally.entry(outcome(id)).or_default() += 1;
    }
    tally
}

/// A simulator without latency.
pub(crate) async fn simulator() -> Simulator {
    simulator_with(Options::default()).await
}

pub(crate) async fn simulator_with(options: Options) -> Simulator {
    Simulator::start(([127, 0, 0, 1], 0).into(), options)
        .await
        .expect("the simulator listens")
}
