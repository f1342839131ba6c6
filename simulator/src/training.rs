//! The `fine_tuning` part of a voice: the state of its training for each model.

use std::sync::LazyLock;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::attributes::{Written, written};

/// The models for which a professional clone is trained.
const MODELS: [&str; 2] = ["eleven_multilingual_v2", "eleven_turbo_v2_5"];

static UNTRAINED: Written =
    LazyLock::new(|| written(&Training::new([None; 2], [None; 2], [None; 2])));

/// The progress of a training.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Progress {
    /// It ends when the voice has this age.
    Timed { age: Duration, after: Duration },
    /// It never ends.
    Endless,
}

/// The content of a voice's `fine_tuning`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum FineTuning {
    Object(Training),
    /// The object of a voice that is not trained. This is the usual case, so it is serialized once.
    Untrained(&'static RawValue),
    /// Text instead of an object.
    Wrong(&'static str),
}

impl FineTuning {
    /// For a voice that is not trained at all, such as an instant clone.
    pub(crate) fn none() -> Self {
        Self::Untrained(&UNTRAINED)
    }

    pub(crate) fn not_started() -> Self {
        Self::Object(Training::new(
            [Some("not_started"); 2],
            [Some(0.0); 2],
            [Some(""); 2],
        ))
    }

    pub(crate) fn fine_tuned() -> Self {
        Self::Object(Training::new(
            [Some("fine_tuned"); 2],
            [Some(1.0); 2],
            [Some("Done!"); 2],
        ))
    }

    pub(crate) fn failed() -> Self {
        Self::Object(Training::new(
            [Some("failed"); 2],
            [Some(0.0); 2],
            [Some("Fine tuning failed: the samples hold more than one speaker."); 2],
        ))
    }

    /// An undocumented state for one model; the other one is trained.
    pub(crate) fn strange() -> Self {
        Self::Object(Training::new(
            [Some("marinating"), Some("fine_tuned")],
            [Some(0.5), Some(1.0)],
            [Some("Resting overnight."), Some("Done!")],
        ))
    }

    /// For a training in progress. The second model is later than the first, so that clients see voices whose models
    /// have different states.
    pub(crate) fn training(progress: Progress) -> Self {
        let first = match progress {
            Progress::Timed { age, after } => age.as_secs_f64() / after.as_secs_f64(),
            Progress::Endless => 0.5,
        };
        let stages = [Stage::at(first), Stage::at(first * 0.8)];
        Self::Object(Training::new(
            stages.map(|stage| Some(stage.state)),
            stages.map(|stage| Some(stage.progress)),
            stages.map(|stage| Some(stage.message)),
        ))
    }
}

#[derive(Clone, Copy)]
struct Stage {
    state: &'static str,
    progress: f64,
    message: &'static str,
}

impl Stage {
    fn at(share: f64) -> Self {
        let (state, progress, message) = if share < 0.1 {
            ("not_started", 0.0, "")
        } else if share < 0.3 {
            ("queued", 0.0, "Waiting for a free machine.")
        } else {
            ("fine_tuning", (share - 0.3) / 0.7, "Training the model.")
        };
        Self {
            state,
            progress,
            message,
        }
    }
}

/// `FineTuningResponseModel` of the OpenAPI description.
#[derive(Debug, Serialize)]
pub(crate) struct Training {
    is_allowed_to_fine_tune: bool,
    state: ByModel<&'static str>,
    verification_failures: [&'static str; 0],
    verification_attempts_count: u32,
    manual_verification_requested: bool,
    language: Option<&'static str>,
    progress: ByModel<f64>,
    message: ByModel<&'static str>,
    dataset_duration_seconds: Option<f64>,
    verification_attempts: Option<()>,
    slice_ids: Option<()>,
    manual_verification: Option<()>,
    max_verification_attempts: Option<u32>,
    next_max_verification_attempts_reset_unix_ms: Option<u64>,
}

impl Training {
    fn new(
        state: [Option<&'static str>; 2],
        progress: [Option<f64>; 2],
        message: [Option<&'static str>; 2],
    ) -> Self {
        Self {
            is_allowed_to_fine_tune: true,
            state: ByModel(state),
            verification_failures: [],
            verification_attempts_count: 0,
            manual_verification_requested: false,
            language: Some("en"),
            progress: ByModel(progress),
            message: ByModel(message),
            dataset_duration_seconds: Some(61.5),
            verification_attempts: None,
            slice_ids: None,
            manual_verification: None,
            max_verification_attempts: Some(5),
            next_max_verification_attempts_reset_unix_ms: Some(1_900_000_000_000),
        }
    }
}

/// A map from model to value, without models that have no value.
#[derive(Debug)]
struct ByModel<T>([Option<T>; 2]);

impl<T: Serialize> Serialize for ByModel<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            MODELS
                .iter()
                .zip(&self.0)
                .filter_map(|(model, value)| Some((model, value.as_ref()?))),
        )
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    fn states(age: u64) -> String {
        let training = FineTuning::training(Progress::Timed {
            age: Duration::from_secs(age),
            after: Duration::from_secs(100),
        });
        let json = serde_json::to_value(&training).unwrap();
        format!("{} {}", json["state"][MODELS[0]], json["state"][MODELS[1]])
    }

    #[test]
    fn training_passes_through_its_states_in_order() {
        assert_eq!(states(0), r#""not_started" "not_started""#);
        assert_eq!(states(11), r#""queued" "not_started""#);
        assert_eq!(states(31), r#""fine_tuning" "queued""#);
        assert_eq!(states(99), r#""fine_tuning" "fine_tuning""#);
    }

    #[test]
    fn untrained_voice_has_empty_state_and_progress() {
        let json = serde_json::to_value(FineTuning::none()).unwrap();
        assert_eq!(json["state"], serde_json::json!({}));
        assert_eq!(json["progress"], serde_json::json!({}));
    }
}
