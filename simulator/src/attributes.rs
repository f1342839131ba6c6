//! The parts of a voice that do not depend on its fate.

use std::sync::LazyLock;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

#[derive(Serialize)]
pub(crate) struct Sample<'a> {
    sample_id: &'a str,
    file_name: &'static str,
    mime_type: &'static str,
    size_bytes: u64,
    hash: &'static str,
    duration_secs: Option<f64>,
    remove_background_noise: Option<bool>,
    has_isolated_audio: Option<bool>,
    has_isolated_audio_preview: Option<bool>,
    speaker_separation: Option<()>,
    trim_start: Option<u64>,
    trim_end: Option<u64>,
}

impl<'a> Sample<'a> {
    /// The only sample of the voice with this id.
    pub(crate) fn of(voice_id: &'a str) -> Self {
        Self {
            sample_id: voice_id,
            file_name: "sample.mp3",
            mime_type: "audio/mpeg",
            size_bytes: 1_000_000,
            hash: "9f86d081884c7d659a2feaa0c55ad015",
            duration_secs: Some(61.5),
            remove_background_noise: Some(false),
            has_isolated_audio: Some(false),
            has_isolated_audio_preview: Some(false),
            speaker_separation: None,
            trim_start: None,
            trim_end: None,
        }
    }
}

/// JSON that is the same in every voice. It is serialized once, because it makes up half of a list's bytes.
pub(crate) type Written = LazyLock<Box<RawValue>>;

pub(crate) fn written<T: Serialize>(value: &T) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_default()
}

pub(crate) static LABELS: Written = LazyLock::new(|| {
    written(&Labels {
        accent: "american",
        age: "middle-aged",
        description: "expressive",
        gender: "female",
        use_case: "social media",
    })
});

pub(crate) static SETTINGS: Written = LazyLock::new(|| {
    written(&Settings {
        stability: 0.5,
        use_speaker_boost: true,
        similarity_boost: 0.75,
        style: 0.0,
        speed: 1.0,
    })
});

pub(crate) static HIGH_QUALITY_BASE_MODEL_IDS: Written = LazyLock::new(|| {
    written(&[
        "eleven_v2_flash",
        "eleven_flash_v2",
        "eleven_turbo_v2_5",
        "eleven_multilingual_v2",
        "eleven_v2_5_flash",
        "eleven_flash_v2_5",
        "eleven_turbo_v2",
    ])
});

pub(crate) static VERIFIED_LANGUAGES: Written = LazyLock::new(|| {
    let language = |language, accent, locale| Language {
        language,
        model_id: "eleven_multilingual_v2",
        accent: Some(accent),
        locale: Some(locale),
        preview_url: None,
    };
    written(&[
        language("en", "american", "en-US"),
        language("de", "standard", "de-DE"),
    ])
});

#[derive(Serialize)]
struct Labels {
    accent: &'static str,
    age: &'static str,
    description: &'static str,
    gender: &'static str,
    use_case: &'static str,
}

#[derive(Serialize)]
struct Settings {
    stability: f64,
    use_speaker_boost: bool,
    similarity_boost: f64,
    style: f64,
    speed: f64,
}

#[derive(Serialize)]
struct Language {
    language: &'static str,
    model_id: &'static str,
    accent: Option<&'static str>,
    locale: Option<&'static str>,
    preview_url: Option<&'static str>,
}

#[derive(Serialize)]
pub(crate) struct Verification {
    pub(crate) requires_verification: bool,
    pub(crate) is_verified: bool,
    pub(crate) verification_failures: [&'static str; 0],
    pub(crate) verification_attempts_count: u32,
    pub(crate) language: Option<&'static str>,
    pub(crate) verification_attempts: Option<()>,
}
