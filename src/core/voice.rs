//! What is known about a voice: the ids of its row, and what the provider says about it.
//!
//! The fields of [`Voice`] are those of the provider's `VoiceResponseModel` that decide on a verdict; all other
//! fields are ignored. All but `voice_id` may be missing or null, and unknown values are kept as text instead of
//! causing an error.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::format;

/// The primary key of a row in the application's table, as that database prints it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(String);

impl RowId {
    /// Takes a key as the store read it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The position of a row in the order in which a pass goes through the application's table. Only the store interprets
/// it, because the order depends on the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position(String);

impl Position {
    /// Takes a position as the store read it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The position as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The provider's id of a voice, checked to be safe inside a URL.
///
/// Ids come from the application's table, so they are untrusted: an id with characters other than letters, digits,
/// `-` and `_` is never sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProviderVoiceId(String);

/// A provider id as its row has it, to compare with the row: perhaps none that may be sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredProviderId(String);

impl StoredProviderId {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<ProviderVoiceId> for StoredProviderId {
    fn from(id: ProviderVoiceId) -> Self {
        Self(id.0)
    }
}

impl fmt::Display for StoredProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a stored provider id cannot be asked about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProviderId {
    /// The column is null or holds an empty string.
    #[error("the row has no provider id")]
    Absent,
    /// Longer than any id of the provider.
    #[error("the provider id has {0} characters, more than {max}", max = ProviderVoiceId::MAX_CHARS)]
    TooLong(usize),
    /// A character that cannot be part of an id.
    #[error("the provider id contains {0:?}, which no ElevenLabs id contains")]
    Character(char),
}

impl ProviderVoiceId {
    /// Ids of the provider have 20 characters; the application's column has room for 100.
    pub const MAX_CHARS: usize = 100;

    /// Checks an id from the application's table.
    pub fn parse(text: &str) -> Result<Self, InvalidProviderId> {
        if text.is_empty() {
            return Err(InvalidProviderId::Absent);
        }
        if let Some(character) = text
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
        {
            return Err(InvalidProviderId::Character(character));
        }
        if text.len() > Self::MAX_CHARS {
            return Err(InvalidProviderId::TooLong(text.len()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProviderVoiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the provider says about one voice, reduced to the fields that decide.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct Voice {
    /// The provider's id, by which answers are matched to rows.
    pub voice_id: String,
    /// Not from the provider itself: some gateways add it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<GatewayStatus>,
    /// `professional` voices are trained for hours; all others are instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// Null until the provider has made the preview.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "format::url_without_query"
    )]
    pub preview_url: Option<String>,
    /// Progress of professional training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuning: Option<FineTuning>,
    /// Whether the owner must still prove that the voice is theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voice_verification: Option<Verification>,
    /// Whether the provider has locked the voice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety_control: Option<SafetyControl>,
}

impl Voice {
    /// The preview, if there is one. An empty string counts as none.
    pub fn preview(&self) -> Option<&str> {
        self.preview_url.as_deref().filter(|url| !url.is_empty())
    }

    /// Whether the voice waits for its owner, not for the provider.
    pub fn is_unverified(&self) -> bool {
        self.voice_verification.as_ref().is_some_and(|v| {
            v.requires_verification.unwrap_or(false) && !v.is_verified.unwrap_or(false)
        })
    }

    /// The kind of voice, to store which kinds the list does not return.
    pub fn kind(&self) -> &str {
        self.category.as_ref().map_or("unknown", Category::as_str)
    }

    /// Values that this version does not know, for the log.
    pub fn unknown_values(&self) -> Vec<Cow<'static, str>> {
        let mut unknown = Vec::new();
        if let Some(GatewayStatus::Unknown(text)) = &self.status {
            unknown.push(format!("status {text:?}").into());
        }
        if let Some(Category::Unknown(text)) = &self.category {
            unknown.push(format!("category {text:?}").into());
        }
        if let Some(SafetyControl::Unknown(text)) = &self.safety_control {
            unknown.push(format!("safety_control {text:?}").into());
        }
        if let Some(fine_tuning) = &self.fine_tuning {
            for state in fine_tuning.states().map(|(_, state)| state) {
                if let FineTuningState::Unknown(text) = state {
                    unknown.push(format!("fine_tuning.state {text:?}").into());
                }
            }
        }
        unknown
    }
}

/// A top-level `status`, where a gateway adds one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayStatus {
    /// Ready for use.
    Completed,
    /// It will never be ready.
    Failed,
    /// Not decided yet.
    Processing,
    /// Anything else; ignored.
    #[serde(untagged)]
    Unknown(String),
}

/// How a voice was made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Designed from a description.
    Generated,
    /// An instant clone.
    Cloned,
    /// One of the provider's own voices.
    Premade,
    /// A professional clone, trained for hours.
    Professional,
    /// A licensed voice.
    Famous,
    /// A shared voice of high quality.
    HighQuality,
    /// A category that this version does not know.
    #[serde(untagged)]
    Unknown(String),
}

impl Category {
    fn as_str(&self) -> &str {
        match self {
            Self::Generated => "generated",
            Self::Cloned => "cloned",
            Self::Premade => "premade",
            Self::Professional => "professional",
            Self::Famous => "famous",
            Self::HighQuality => "high_quality",
            Self::Unknown(text) => text,
        }
    }
}

/// Progress of professional training, for each model that the voice is trained for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct FineTuning {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<BTreeMap<String, Option<FineTuningState>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<BTreeMap<String, Option<String>>>,
}

impl FineTuning {
    /// Each model with its state. A null state counts as missing.
    pub fn states(&self) -> impl Iterator<Item = (&str, &FineTuningState)> {
        self.state
            .iter()
            .flatten()
            .filter_map(|(model, state)| Some((model.as_str(), state.as_ref()?)))
    }

    /// The provider's message about a model.
    pub fn message(&self, model: &str) -> Option<&str> {
        self.message.as_ref()?.get(model)?.as_deref()
    }
}

/// The state of the training for one model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FineTuningState {
    /// Waits for its owner to start it.
    NotStarted,
    /// Waits for the provider.
    Queued,
    /// In progress.
    FineTuning,
    FineTuned,
    /// Finished without success.
    Failed,
    /// Waits for the provider for longer than usual.
    Delayed,
    /// A state that this version does not know: still processing.
    #[serde(untagged)]
    Unknown(String),
}

/// Whether the owner must prove, and has proved, that the voice is theirs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Verification {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requires_verification: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    is_verified: Option<bool>,
}

/// Restrictions by the provider's moderation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SafetyControl {
    None,
    /// The voice will never be usable.
    Ban,
    /// The user must solve a captcha.
    Captcha,
    /// Same as [`SafetyControl::Ban`], for an enterprise.
    EnterpriseBan,
    /// Same as [`SafetyControl::Captcha`], for an enterprise.
    EnterpriseCaptcha,
    /// A value that this version does not know; ignored.
    #[serde(untagged)]
    Unknown(String),
}

impl SafetyControl {
    /// Whether the voice is locked permanently.
    pub fn is_ban(&self) -> bool {
        match self {
            Self::Ban | Self::EnterpriseBan => true,
            Self::None | Self::Captcha | Self::EnterpriseCaptcha | Self::Unknown(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_provider_ids_that_are_unsafe_in_a_url() {
        for (text, error) in [
            ("", InvalidProviderId::Absent),
            ("../user", InvalidProviderId::Character('.')),
            ("a/b", InvalidProviderId::Character('/')),
            ("a?b", InvalidProviderId::Character('?')),
            ("a b", InvalidProviderId::Character(' ')),
            ("a%2e", InvalidProviderId::Character('%')),
            ("a\0", InvalidProviderId::Character('\0')),
            ("vöice", InvalidProviderId::Character('ö')),
        ] {
            assert_eq!(ProviderVoiceId::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(
            ProviderVoiceId::parse(&"x".repeat(101)),
            Err(InvalidProviderId::TooLong(101))
        );
        assert!(ProviderVoiceId::parse(&"x".repeat(100)).is_ok());
        assert!(ProviderVoiceId::parse("21m00Tcm4TlvDq8ikWAM").is_ok());
    }

    #[test]
    fn every_field_except_the_id_may_be_absent_or_null() {
        let bare: Voice = serde_json::from_str(r#"{"voice_id":"v"}"#).expect("parses");
        let nulls: Voice = serde_json::from_str(
            r#"{"voice_id":"v","status":null,"category":null,"preview_url":null,
                "fine_tuning":null,"voice_verification":null,"safety_control":null}"#,
        )
        .expect("parses");
        assert_eq!(bare, nulls);
        let inner: Voice = serde_json::from_str(
            r#"{"voice_id":"v","fine_tuning":{"state":{"m":null},"message":null},
                "voice_verification":{"requires_verification":null}}"#,
        )
        .expect("parses");
        assert_eq!(inner.fine_tuning.expect("is there").states().count(), 0);
    }

    #[test]
    fn unknown_values_are_kept_and_reported() {
        let voice: Voice = serde_json::from_str(
            r#"{"voice_id":"v","category":"holographic","safety_control":"SHRUG","status":"odd",
                "fine_tuning":{"state":{"m":"pondering"}},"new_field":{"a":[1]}}"#,
        )
        .expect("parses");
        assert_eq!(voice.unknown_values().len(), 4);
    }
}
