//! What must hold, and a model that is just large enough to tell whether it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use uuid::Uuid;
use voice_sync::core::event::{EventType, OutboxEvent, event_id};
use voice_sync::core::voice::{ProviderVoiceId, RowId};
use voice_sync::store::LEASE;

use super::Status;
use super::program::hyphenated;

/// What voice-sync promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    HappensOnce,
    ApplicationWins,
    AsReported,
    EventIsCommitted,
    SameBytes,
    NothingIsLost,
    LeasesHold,
}

impl Promise {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::HappensOnce => "a transition happens once",
            Self::ApplicationWins => "what the application wrote stays",
            Self::AsReported => "a row moves to what the provider says of its clone",
            Self::EventIsCommitted => "an event exists if and only if its transition committed",
            Self::SameBytes => "an event is the same whenever it is published",
            Self::NothingIsLost => "what is left undone is done in the end",
            Self::LeasesHold => "a claimed voice is one instance's alone",
        }
    }

    pub(super) fn broken(self, what: impl Into<String>) -> Violation {
        Violation {
            promise: self,
            what: what.into(),
        }
    }
}

/// A promise that was broken.
#[derive(Debug)]
pub(super) struct Violation {
    promise: Promise,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, but: {}", self.promise.as_str(), self.what)
    }
}

/// A row of the application's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) provider_id: String,
    pub(super) user_id: String,
    pub(super) status: Status,
    pub(super) preview_url: Option<String>,
    pub(super) completed_at: Option<String>,
}

/// What an event says, all but when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) event_type: String,
    pub(super) voice_id: String,
    pub(super) user_id: Option<String>,
}

struct Lease {
    run_id: Uuid,
    until: Duration,
}

/// The world as it has to be.
#[derive(Default)]
pub(super) struct Reference {
    /// As the application, or since then a transition, left them.
    pub(super) rows: BTreeMap<RowId, Row>,
    /// What the provider told an instance, where that was final.
    reported: BTreeMap<String, Status>,
    /// The events of all transitions so far, by their ids.
    transitions: BTreeMap<Uuid, Told>,
    /// The first publication of each event.
    bus: BTreeMap<Uuid, String>,
    leases: BTreeMap<RowId, Lease>,
}

impl Reference {
    /// An instance heard the provider's last word on a clone.
    pub(super) fn reported(&mut self, provider_id: &str, status: Status) {
        self.reported.insert(provider_id.to_owned(), status);
    }

    /// An instance claimed a voice, some time between `from` and `to`.
    pub(super) fn claimed(
        &mut self,
        run_id: Uuid,
        row: &RowId,
        provider_id: &str,
        (from, to): (Duration, Duration),
    ) -> Result<(), Violation> {
        let due = self.rows.get(row).is_some_and(|known| {
            known.status == Status::Processing && known.provider_id == provider_id
        });
        if !due {
            let what = format!("{row} with {provider_id} was claimed and is not in processing");
            return Err(Promise::ApplicationWins.broken(what));
        }
        let until = from + LEASE;
        match self.leases.insert(row.clone(), Lease { run_id, until }) {
            Some(held) if held.run_id != run_id && to < held.until => {
                let left = held.until - to;
                let what = format!("{row} was claimed with {left:?} left of another's lease");
                Err(Promise::LeasesHold.broken(what))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// An instance is done with a voice.
    pub(super) fn given_back(&mut self, run_id: Uuid, row: &RowId) {
        if self
            .leases
            .get(row)
            .is_some_and(|lease| lease.run_id == run_id)
        {
            self.leases.remove(row);
        }
    }

    /// Holds the application's table against what it was. The rows that moved since.
    pub(super) fn look_at_rows(
        &mut self,
        mut found: BTreeMap<RowId, Row>,
    ) -> Result<BTreeSet<RowId>, Violation> {
        let mut moved = BTreeSet::new();
        for (id, was) in &mut self.rows {
            let Some(is) = found.remove(id) else {
                return Err(Promise::ApplicationWins.broken(format!("{id} is gone")));
            };
            if is == *was {
                continue;
            }
            let written = Row {
                status: is.status,
                preview_url: is.preview_url.clone(),
                completed_at: is.completed_at.clone(),
                ..was.clone()
            };
            if was.status != Status::Processing || written != is {
                let what = format!("{id} was {was:?} and is {is:?}");
                return Err(Promise::ApplicationWins.broken(what));
            }
            if self.reported.get(&is.provider_id) != Some(&is.status) {
                let what = format!("nobody was told that {is:?} is so, which was {was:?}");
                return Err(Promise::AsReported.broken(what));
            }
            let (as_it_should, event_type) = match is.status {
                Status::Completed => (
                    is.preview_url == preview(&is.provider_id) && is.completed_at.is_some(),
                    EventType::VoiceCreated,
                ),
                Status::Failed | Status::Processing => (
                    (&is.preview_url, &is.completed_at) == (&was.preview_url, &was.completed_at),
                    EventType::VoiceUpdated,
                ),
            };
            if !as_it_should {
                let what = format!("{id} was {was:?} and is {is:?}");
                return Err(Promise::AsReported.broken(what));
            }
            let provider_id = ProviderVoiceId::parse(&is.provider_id).expect("it was claimed");
            let told = Told {
                event_type: event_type.as_str().to_owned(),
                voice_id: hyphenated(id.as_str()),
                user_id: Some(hyphenated(&is.user_id)),
            };
            let event = event_id(id, &provider_id, event_type);
            if self.transitions.insert(event, told).is_some() {
                return Err(Promise::HappensOnce.broken(format!("{is:?} moved again")));
            }
            moved.insert(id.clone());
            *was = is;
        }
        match found.pop_first() {
            None => Ok(moved),
            Some((id, _)) => {
                Err(Promise::ApplicationWins.broken(format!("{id} is not the application's")))
            }
        }
    }

    /// Holds the outbox against the transitions that were seen.
    pub(super) fn look_at_outbox(&self, found: &[(Uuid, Told)]) -> Result<(), Violation> {
        let mut recorded = BTreeSet::new();
        for (id, told) in found {
            if !recorded.insert(id) {
                let what = format!("{told:?} is recorded twice");
                return Err(Promise::HappensOnce.broken(what));
            }
            if self.transitions.get(id) != Some(told) {
                let what = format!("no transition is behind {told:?}");
                return Err(Promise::EventIsCommitted.broken(what));
            }
        }
        match self
            .transitions
            .iter()
            .find(|(id, _)| !recorded.contains(id))
        {
            None => Ok(()),
            Some((_, told)) => {
                let what = format!("{told:?} is not recorded");
                Err(Promise::EventIsCommitted.broken(what))
            }
        }
    }

    /// An event comes onto the bus.
    pub(super) fn published(&mut self, event: &OutboxEvent) -> Result<(), Violation> {
        let body = event.body();
        if !self.transitions.contains_key(&event.event_id) {
            let what = format!("no transition is behind the published {body}");
            return Err(Promise::EventIsCommitted.broken(what));
        }
        let first = self
            .bus
            .entry(event.event_id)
            .or_insert_with(|| body.clone());
        match *first == body {
            true => Ok(()),
            false => Err(Promise::SameBytes.broken(format!("first {first}, then {body}"))),
        }
    }

    /// How much has happened, to see whether something still does.
    pub(super) fn progress(&self) -> (usize, usize) {
        (self.transitions.len(), self.bus.len())
    }

    /// Whether all is done that can be.
    pub(super) fn look_at_the_end(
        &self,
        provider: &BTreeMap<String, Status>,
        pending: u64,
    ) -> Result<(), Violation> {
        let left = self.rows.values().find(|row| {
            row.status == Status::Processing && provider.get(&row.provider_id) != Some(&row.status)
        });
        if let Some(row) = left {
            let what = format!("{row:?} is behind what the provider says of it");
            return Err(Promise::NothingIsLost.broken(what));
        }
        let lost = self
            .transitions
            .iter()
            .find(|(id, _)| !self.bus.contains_key(id));
        if let Some((_, told)) = lost {
            return Err(Promise::NothingIsLost.broken(format!("{told:?} was never published")));
        }
        match pending {
            0 => Ok(()),
            _ => Err(Promise::NothingIsLost.broken(format!("{pending} events still wait"))),
        }
    }
}

/// Where the provider has a clone's preview.
pub(super) fn preview(provider_id: &str) -> Option<String> {
    Some(format!("https://provider/{provider_id}.mp3"))
}
