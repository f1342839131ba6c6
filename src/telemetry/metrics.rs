//! The metrics that are counted during the work. The code that does the work updates them;
//! [`crate::telemetry::exposition`] outputs them.
//!
//! Clones of a metric share its value. A metric is exported only after it was registered.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::core::nudge::Nudge;
use crate::core::transition::SetAside;

pub type Label = [(&'static str, &'static str); 1];
/// The labels of a request.
pub type RequestLabels = [(&'static str, &'static str); 2];

/// The endpoint of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `GET /v2/voices`.
    List,
    /// `GET /v1/voices/{voice_id}`.
    Single,
    /// `POST /v1/text-to-speech/{voice_id}`.
    Speech,
}

impl Endpoint {
    pub const ALL: [Self; 3] = [Self::List, Self::Single, Self::Speech];

    /// The value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Single => "single",
            Self::Speech => "speech",
        }
    }
}

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// An answer.
    Ok,
    /// The voice or the endpoint does not exist.
    NotFound,
    /// The provider rejects the key.
    Refused,
    /// The provider rejects the request.
    Rejected,
    /// 429.
    Throttled,
    /// 5xx, or another status that means "later".
    ServerError,
    /// No answer within the time limit.
    Timeout,
    /// No connection.
    Connect,
    /// An answer that is incomplete or cannot be read.
    Broken,
    /// voice-sync cancelled the request.
    Abandoned,
}

impl Class {
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::NotFound,
        Self::Refused,
        Self::Rejected,
        Self::Throttled,
        Self::ServerError,
        Self::Timeout,
        Self::Connect,
        Self::Broken,
        Self::Abandoned,
    ];

    /// The value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Throttled => "throttled",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Broken => "broken",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Requests to the provider.
#[derive(Debug, Clone)]
pub struct ProviderMetrics {
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) duration: Histogram,
    pub(crate) in_flight: Gauge,
}

impl Default for ProviderMetrics {
    fn default() -> Self {
        let requests = Family::default();
        for endpoint in Endpoint::ALL {
            for class in Class::ALL {
                let _zero = Family::get_or_create(&requests, &labels(endpoint, class));
            }
        }
        Self {
            requests,
            duration: Histogram::new([0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
            in_flight: Gauge::default(),
        }
    }
}

impl ProviderMetrics {
    /// Counts a completed request.
    pub fn ended(&self, endpoint: Endpoint, class: Class, took: Duration) {
        self.requests.get_or_create(&labels(endpoint, class)).inc();
        self.duration.observe(took.as_secs_f64());
    }
}

fn labels(endpoint: Endpoint, class: Class) -> RequestLabels {
    [("endpoint", endpoint.as_str()), ("class", class.as_str())]
}

/// What passes do with voices.
#[derive(Debug, Clone)]
pub struct PassMetrics {
    pub(crate) lag: Histogram,
    pub(crate) set_aside: Family<Label, Counter>,
    pub(crate) reclaimed: Counter,
    pub(crate) stale: Counter,
    pub(crate) unknown: Counter,
}

impl Default for PassMetrics {
    fn default() -> Self {
        let set_aside = Family::default();
        for kind in SetAside::KINDS {
            let _zero = Family::get_or_create(&set_aside, &[("reason", kind)]);
        }
        Self {
            lag: Histogram::new([1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 3600.0]),
            set_aside,
            reclaimed: Counter::default(),
            stale: Counter::default(),
            unknown: Counter::default(),
        }
    }
}

impl PassMetrics {
    /// Counts a voice that was set aside.
    pub fn set_aside(&self, why: &SetAside) {
        self.set_aside
            .get_or_create(&[("reason", why.kind())])
            .inc();
    }
}

/// The source of a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HintSource {
    /// `POST /webhooks/elevenlabs`.
    Webhook,
    /// `POST /hints`.
    Application,
}

impl HintSource {
    const ALL: [Self; 2] = [Self::Webhook, Self::Application];

    /// The value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Application => "application",
        }
    }
}

/// The response to a request with hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HintResult {
    Accepted,
    /// The secret is invalid.
    Unauthorized,
    /// The body is invalid.
    Invalid,
    TooLarge,
    /// Too many hints wait.
    Throttled,
}

impl HintResult {
    const ALL: [Self; 5] = [
        Self::Accepted,
        Self::Unauthorized,
        Self::Invalid,
        Self::TooLarge,
        Self::Throttled,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Unauthorized => "unauthorized",
            Self::Invalid => "invalid",
            Self::TooLarge => "too_large",
            Self::Throttled => "throttled",
        }
    }
}

/// Hints over HTTP.
#[derive(Debug, Clone)]
pub struct HintMetrics {
    pub(crate) requests: Family<[(&'static str, &'static str); 2], Counter>,
    pub(crate) ids: Family<Label, Counter>,
}

impl Default for HintMetrics {
    fn default() -> Self {
        let (requests, ids) = (Family::default(), Family::default());
        for source in HintSource::ALL {
            for result in HintResult::ALL {
                let labels = [("source", source.as_str()), ("result", result.as_str())];
                let _zero = Family::get_or_create(&requests, &labels);
            }
        }
        for found in ["processing", "unknown"] {
            let _zero = Family::get_or_create(&ids, &[("voice", found)]);
        }
        Self { requests, ids }
    }
}

impl HintMetrics {
    /// Counts a request.
    pub fn received(&self, source: HintSource, result: HintResult) {
        let labels = [("source", source.as_str()), ("result", result.as_str())];
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts ids of hints that were looked for in the database: those of voices in processing, and unknown ones.
    pub fn delivered(&self, processing: u64, unknown: u64) {
        for (found, ids) in [("processing", processing), ("unknown", unknown)] {
            self.ids.get_or_create(&[("voice", found)]).inc_by(ids);
        }
    }
}

#[derive(Debug, Clone)]
pub struct NudgeMetrics {
    pub(crate) nudges: Family<Label, Counter>,
    pub(crate) characters: Counter,
}

impl Default for NudgeMetrics {
    fn default() -> Self {
        let nudges = Family::default();
        for answer in Nudge::ALL.into_iter().filter(|nudge| *nudge != Nudge::Sent) {
            let _zero = Family::get_or_create(&nudges, &[("answer", answer.as_str())]);
        }
        Self {
            nudges,
            characters: Counter::default(),
        }
    }
}

impl NudgeMetrics {
    /// Counts a nudge.
    pub fn nudged(&self, answer: Nudge) {
        let label = [("answer", answer.as_str())];
        self.nudges.get_or_create(&label).inc();
    }
}
