//! Events: their format and their ids. Pure.
//!
//! The format is the one that the application's consumers parse: an object with exactly `type`, `payload`,
//! `timestamp`, `source` and `event_id`, where `payload` has `voice_id` and `user_id`.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::{Uuid, uuid};

use super::voice::RowId;

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// A voice is completed. (The name is the application's: its cache is invalidated by it.)
    VoiceCreated,
    /// A voice failed.
    VoiceUpdated,
}

impl EventType {
    /// All types.
    pub const ALL: [Self; 2] = [Self::VoiceCreated, Self::VoiceUpdated];

    /// The name on the bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VoiceCreated => "voice.created",
            Self::VoiceUpdated => "voice.updated",
        }
    }

    /// Reads a stored name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|event_type| event_type.as_str() == text)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The id of a transition's event: the same on every publication, by whichever process, so that a
/// consumer can drop what it has seen. A UUIDv5 (RFC 9562, 5.5) of row, provider id and type.
pub fn event_id(row: &RowId, provider_id: impl fmt::Display, event_type: EventType) -> Uuid {
    const NAMESPACE: Uuid = uuid!("5d2b5b0e-52a1-4b0f-9d4e-0f6f7b1c9a51");
    let name = format!("{row}\n{provider_id}\n{event_type}");
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

/// The id of events that were committed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub Uuid);

/// An event that was committed with its transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEvent {
    /// Its number in the outbox.
    pub id: i64,
    /// The batch with which it is leased and published.
    pub batch: BatchId,
    /// See [`event_id`].
    pub event_id: Uuid,
    /// Its type.
    pub event_type: EventType,
    /// The application's id of the voice, a UUID with its dashes.
    pub voice_id: String,
    /// The user of the voice.
    pub user_id: Option<String>,
    /// When the transition was committed, by the database's clock.
    pub occurred_at: DateTime<Utc>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    event_type: &'static str,
    payload: Payload<'a>,
    timestamp: String,
    source: &'static str,
    event_id: Uuid,
}

#[derive(Serialize)]
struct Payload<'a> {
    voice_id: &'a str,
    user_id: Option<&'a str>,
}

impl OutboxEvent {
    /// The event as JSON: always the same bytes. The timestamp is naive UTC with microseconds, in the application's
    /// format.
    pub fn body(&self) -> String {
        let body = Body {
            event_type: self.event_type.as_str(),
            payload: Payload {
                voice_id: &self.voice_id,
                user_id: self.user_id.as_deref(),
            },
            timestamp: self.occurred_at.format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
            source: "voice-sync",
            event_id: self.event_id,
        };
        serde_json::to_string(&body).expect("strings and UUIDs always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::voice::ProviderVoiceId;

    #[test]
    fn body_matches_the_application_event_format() {
        let event = OutboxEvent {
            id: 7,
            batch: BatchId(Uuid::nil()),
            event_id: Uuid::nil(),
            event_type: EventType::VoiceCreated,
            voice_id: "0b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11".into(),
            user_id: Some("7c9e6679-7425-40de-944b-e07fc1f90ae7".into()),
            occurred_at: DateTime::from_timestamp_micros(1_793_606_400_000_120).expect("a time"),
        };
        assert_eq!(
            event.body(),
            r#"{"type":"voice.created","payload":{"voice_id":"0b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11","user_id":"7c9e6679-7425-40de-944b-e07fc1f90ae7"},"timestamp":"2026-11-02T08:00:00.000120","source":"voice-sync","event_id":"00000000-0000-0000-0000-000000000000"}"#
        );
    }

    #[test]
    fn event_id_depends_only_on_row_provider_id_and_type() {
        let id = |row: &str, provider: &str, event_type| {
            let provider = ProviderVoiceId::parse(provider).expect("an id");
            event_id(&RowId::new(row), &provider, event_type)
        };
        let first = id("r", "p", EventType::VoiceCreated);
        assert_eq!(first.to_string(), "ad8cd0b4-6024-5528-b1b2-16897976b48e");
        assert_eq!(first, id("r", "p", EventType::VoiceCreated));
        assert_ne!(first, id("r2", "p", EventType::VoiceCreated));
        assert_ne!(first, id("r", "p2", EventType::VoiceCreated));
        assert_ne!(first, id("r", "p", EventType::VoiceUpdated));
    }
}
