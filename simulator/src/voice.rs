//! The JSON of a voice at one time of its life.
//!
//! Typed structs, and parts that are serialized once, instead of `serde_json::Value`: one answer contains a hundred
//! voices, and a benchmark must measure the client, not the simulator.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::attributes::{
    HIGH_QUALITY_BASE_MODEL_IDS, LABELS, SETTINGS, Sample, VERIFIED_LANGUAGES, Verification,
};
use crate::fate::Fate;
use crate::plan::Plan;
use crate::preview::Preview;
use crate::training::{FineTuning, Progress};

/// A voice at the current time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Voice<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) plan: Plan,
    pub(crate) age: Duration,
    pub(crate) created_at_unix: u64,
    /// Whether a request for speech used it.
    pub(crate) has_spoken: bool,
    /// Whether it is one of the provider's own voices, not a cloned one.
    pub(crate) premade: bool,
}

impl Voice<'_> {
    fn due(&self) -> bool {
        self.age >= self.plan.after
    }

    fn category(&self) -> Category {
        if self.premade {
            return Category::Name("premade");
        }
        match self.plan.fate {
            Fate::PvcReady | Fate::PvcFailed | Fate::PvcTraining | Fate::PvcUnverified => {
                Category::Name("professional")
            }
            Fate::Strange => Category::Name("holographic"),
            Fate::Malformed => Category::Wrong {
                name: "cloned",
                rank: 2,
            },
            Fate::Ready
            | Fate::NoPreview
            | Fate::Silent
            | Fate::Banned
            | Fate::Unverified
            | Fate::Missing
            | Fate::Unlisted
            | Fate::LongPreview
            | Fate::NulPreview
            | Fate::StatusCompleted
            | Fate::StatusFailed
            | Fate::StatusProcessing => Category::Name("cloned"),
        }
    }

    fn preview(&self) -> Preview<'_> {
        let preview = match self.plan.fate {
            Fate::Malformed => return Preview::Wrong,
            Fate::NoPreview
            | Fate::Banned
            | Fate::Unverified
            | Fate::PvcFailed
            | Fate::PvcTraining
            | Fate::PvcUnverified
            | Fate::StatusFailed
            | Fate::StatusProcessing => return Preview::None,
            Fate::Silent if !self.has_spoken => return Preview::None,
            Fate::LongPreview => Preview::Long(self.id),
            Fate::NulPreview => Preview::Nul(self.id),
            Fate::Ready
            | Fate::Silent
            | Fate::PvcReady
            | Fate::Missing
            | Fate::Unlisted
            | Fate::StatusCompleted
            | Fate::Strange => Preview::Plain(self.id),
        };
        if self.due() { preview } else { Preview::None }
    }

    fn fine_tuning(&self) -> FineTuning {
        match self.plan.fate {
            Fate::PvcReady if self.due() => FineTuning::fine_tuned(),
            Fate::PvcFailed if self.due() => FineTuning::failed(),
            Fate::PvcReady | Fate::PvcFailed => FineTuning::training(Progress::Timed {
                age: self.age,
                after: self.plan.after,
            }),
            Fate::PvcTraining => FineTuning::training(Progress::Endless),
            Fate::PvcUnverified => FineTuning::not_started(),
            Fate::Strange => FineTuning::strange(),
            Fate::Malformed => FineTuning::Wrong("fine_tuned"),
            Fate::Ready
            | Fate::NoPreview
            | Fate::Silent
            | Fate::Banned
            | Fate::Unverified
            | Fate::Missing
            | Fate::Unlisted
            | Fate::LongPreview
            | Fate::NulPreview
            | Fate::StatusCompleted
            | Fate::StatusFailed
            | Fate::StatusProcessing => {
                if self.premade {
                    FineTuning::fine_tuned()
                } else {
                    FineTuning::none()
                }
            }
        }
    }

    fn verification(&self) -> Verification {
        let (requires_verification, is_verified) = match self.plan.fate {
            Fate::Unverified | Fate::PvcUnverified => (true, false),
            Fate::PvcReady | Fate::PvcFailed | Fate::PvcTraining => (true, true),
            Fate::Ready
            | Fate::NoPreview
            | Fate::Silent
            | Fate::Banned
            | Fate::Missing
            | Fate::Unlisted
            | Fate::LongPreview
            | Fate::NulPreview
            | Fate::StatusCompleted
            | Fate::StatusFailed
            | Fate::StatusProcessing
            | Fate::Strange
            | Fate::Malformed => (false, false),
        };
        Verification {
            requires_verification,
            is_verified,
            verification_failures: [],
            verification_attempts_count: u32::from(is_verified),
            language: Some("en"),
            verification_attempts: None,
        }
    }

    fn status(&self) -> Option<&'static str> {
        match self.plan.fate {
            Fate::StatusCompleted if self.due() => Some("completed"),
            Fate::StatusFailed if self.due() => Some("failed"),
            Fate::StatusCompleted | Fate::StatusFailed | Fate::StatusProcessing => {
                Some("processing")
            }
            Fate::Ready
            | Fate::NoPreview
            | Fate::Silent
            | Fate::Banned
            | Fate::Unverified
            | Fate::PvcReady
            | Fate::PvcFailed
            | Fate::PvcTraining
            | Fate::PvcUnverified
            | Fate::Missing
            | Fate::Unlisted
            | Fate::LongPreview
            | Fate::NulPreview
            | Fate::Strange
            | Fate::Malformed => None,
        }
    }
}

impl Serialize for Voice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let strange = self.plan.fate == Fate::Strange;
        let banned = self.plan.fate == Fate::Banned && self.due();
        Fields {
            voice_id: self.id,
            name: self.name,
            samples: (!self.premade).then_some([Sample::of(self.id)]),
            category: self.category(),
            fine_tuning: self.fine_tuning(),
            labels: &LABELS,
            description: Some("A warm, expressive voice with a touch of humor."),
            preview_url: self.preview(),
            available_for_tiers: [],
            settings: &SETTINGS,
            sharing: None,
            high_quality_base_model_ids: &HIGH_QUALITY_BASE_MODEL_IDS,
            verified_languages: &VERIFIED_LANGUAGES,
            collection_ids: None,
            safety_control: if banned { "BAN" } else { "NONE" },
            voice_verification: self.verification(),
            permission_on_resource: (!self.premade).then_some("admin"),
            is_owner: !self.premade,
            is_legacy: false,
            is_mixed: false,
            favorited_at_unix: None,
            created_at_unix: self.created_at_unix,
            is_bookmarked: None,
            recording_quality: None,
            labelling_status: None,
            status: self.status(),
            aura: strange.then_some([1.5, -2.0]),
            hologram: strange.then_some(Hologram {
                layers: [None, Some("ultraviolet")],
            }),
        }
        .serialize(serializer)
    }
}

/// `VoiceResponseModel` of the OpenAPI description, with additional fields that gateways and future versions may add.
#[derive(Serialize)]
struct Fields<'a> {
    voice_id: &'a str,
    name: &'a str,
    samples: Option<[Sample<'a>; 1]>,
    category: Category,
    fine_tuning: FineTuning,
    labels: &'static RawValue,
    description: Option<&'static str>,
    preview_url: Preview<'a>,
    available_for_tiers: [&'static str; 0],
    settings: &'static RawValue,
    sharing: Option<()>,
    high_quality_base_model_ids: &'static RawValue,
    verified_languages: &'static RawValue,
    collection_ids: Option<()>,
    safety_control: &'static str,
    voice_verification: Verification,
    permission_on_resource: Option<&'static str>,
    is_owner: bool,
    is_legacy: bool,
    is_mixed: bool,
    favorited_at_unix: Option<u64>,
    created_at_unix: u64,
    is_bookmarked: Option<bool>,
    recording_quality: Option<&'static str>,
    labelling_status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aura: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hologram: Option<Hologram>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Category {
    Name(&'static str),
    Wrong { name: &'static str, rank: u8 },
}

#[derive(Serialize)]
struct Hologram {
    layers: [Option<&'static str>; 2],
}
