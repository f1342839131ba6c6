//! The output of metrics for Prometheus. `/metrics` uses its text format, or OpenMetrics if the client requests it
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>). node_exporter's textfile collector gets a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tempfile::NamedTempFile;

use super::prometheus_text::{self, GaugeValue};
use crate::core::exit::Exit;
use crate::core::provider_state::Pressure;
use crate::core::report::{Counts, Report};
use crate::store::Overview;
use crate::telemetry::metrics::{HintMetrics, Label, NudgeMetrics, PassMetrics, ProviderMetrics};

/// The format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, which all scrapers read.
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// Selects the format from an `Accept` header.
    pub fn accepted_by(accept: &str) -> Self {
        let mut ranges = accept.split(',');
        match ranges.any(|range| range.trim().starts_with("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

type Number = Gauge<f64, AtomicU64>;

/// All metrics. Their initial value is zero.
pub struct Metrics {
    registry: Registry,
    /// Counted by the provider.
    pub provider: ProviderMetrics,
    /// Counted by passes.
    pub pass: PassMetrics,
    /// Counted by the endpoints for hints.
    pub hints: HintMetrics,
    /// Counted by the nudger.
    pub nudges: NudgeMetrics,
    /// Whether gauges have current values, not only their initial zeros.
    is_current: AtomicBool,
    last_success: Number,
    last_exit: Gauge,
    duration: Histogram,
    passes: Family<Label, Counter>,
    transitions: Family<Label, Counter>,
    publications: Family<Label, Counter>,
    processing: Gauge,
    oldest_processing: Number,
    resting: Gauge,
    unanswerable: Gauge,
    outbox: Gauge,
    oldest_event: Number,
    clock: Number,
    limit: Gauge,
    breaker_open: Gauge,
    retry_tokens: Gauge,
}

const EXITS: [(Exit, &str); 7] = [
    (Exit::Success, "0"),
    (Exit::Usage, "2"),
    (Exit::Database, "69"),
    (Exit::Io, "74"),
    (Exit::Temporary, "75"),
    (Exit::Key, "77"),
    (Exit::Config, "78"),
];

fn family(name: &'static str, values: &[&'static str]) -> Family<Label, Counter> {
    let family = Family::default();
    for value in values {
        let _zero = Family::get_or_create(&family, &[(name, *value)]);
    }
    family
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("voice_sync");
        let provider = ProviderMetrics::default();
        let pass = PassMetrics::default();
        let hints = HintMetrics::default();
        let nudges = NudgeMetrics::default();
        let exits = EXITS.map(|(_, code)| code);
        let this = Self {
            is_current: AtomicBool::new(false),
            last_success: Gauge::default(),
            last_exit: Gauge::default(),
            duration: Histogram::new([
                0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
            ]),
            passes: family("exit", &exits),
            transitions: family("target", &["completed", "failed"]),
            publications: family("result", &["published", "postponed"]),
            processing: Gauge::default(),
            oldest_processing: Gauge::default(),
            resting: Gauge::default(),
            unanswerable: Gauge::default(),
            outbox: Gauge::default(),
            oldest_event: Gauge::default(),
            clock: Gauge::default(),
            limit: Gauge::default(),
            breaker_open: Gauge::default(),
            retry_tokens: Gauge::default(),
            provider,
            pass,
            hints,
            nudges,
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register_with_unit(
            "last_success_timestamp",
            "When a pass last did everything it had to do, or nothing was due",
            Unit::Seconds,
            this.last_success.clone(),
        );
        r.register(
            "last_exit_code",
            "The exit code of the last run, or the one that the daemon's last pass would end a process with",
            this.last_exit.clone(),
        );
        r.register_with_unit(
            "pass_duration",
            "How long passes take",
            Unit::Seconds,
            this.duration.clone(),
        );
        r.register(
            "passes",
            "Passes, by the exit code that the pass would end a process with",
            this.passes.clone(),
        );
        r.register(
            "transitions",
            "Voices that were moved, by target status",
            this.transitions.clone(),
        );
        r.register(
            "publications",
            "Events, published or postponed",
            this.publications.clone(),
        );
        r.register(
            "processing_voices",
            "Voices in processing",
            this.processing.clone(),
        );
        r.register_with_unit(
            "oldest_processing_age",
            "Age of the oldest voice in processing",
            Unit::Seconds,
            this.oldest_processing.clone(),
        );
        r.register_with_unit(
            "detection_lag",
            "Time from the previous lookup to the transition, which is the longest that a finished voice waited",
            Unit::Seconds,
            this.pass.lag.clone(),
        );
        r.register(
            "set_aside",
            "Voices that could not be looked up or stored, each time",
            this.pass.set_aside.clone(),
        );
        r.register(
            "resting_voices",
            "Voices that are skipped for a day because they were set aside three times",
            this.resting.clone(),
        );
        r.register(
            "unanswerable_voices",
            "Voices that cannot be looked up while the provider answers other requests",
            this.unanswerable.clone(),
        );
        r.register(
            "lease_reclaims",
            "Voices taken over from a process whose lease expired",
            this.pass.reclaimed.clone(),
        );
        r.register(
            "stale_answers_dropped",
            "Answers that came too late, or about rows that had changed",
            this.pass.stale.clone(),
        );
        r.register(
            "unknown_values",
            "Values of the provider that this version does not know",
            this.pass.unknown.clone(),
        );
        r.register(
            "outbox_events",
            "Events that are recorded and not published",
            this.outbox.clone(),
        );
        r.register_with_unit(
            "outbox_oldest_age",
            "How long the oldest event has waited",
            Unit::Seconds,
            this.oldest_event.clone(),
        );
        r.register_with_unit(
            "clock_difference",
            "How far the clock of the database is ahead of the clock of this host",
            Unit::Seconds,
            this.clock.clone(),
        );
        r.register(
            "provider_requests",
            "Requests, retries included",
            this.provider.requests.clone(),
        );
        r.register_with_unit(
            "provider_request_duration",
            "How long requests take",
            Unit::Seconds,
            this.provider.duration.clone(),
        );
        r.register(
            "provider_requests_in_flight",
            "Requests in flight",
            this.provider.in_flight.clone(),
        );
        r.register(
            "provider_concurrency_limit",
            "The current concurrency limit",
            this.limit.clone(),
        );
        r.register(
            "provider_breaker_open",
            "1 while the circuit breaker is open, or during a cooldown",
            this.breaker_open.clone(),
        );
        r.register(
            "provider_retry_tokens",
            "Retries left in the retry budget",
            this.retry_tokens.clone(),
        );
        r.register(
            "hints",
            "Hints over HTTP, by source and result",
            this.hints.requests.clone(),
        );
        r.register(
            "hinted_ids",
            "Ids in accepted hints, by whether a voice in processing has the id",
            this.hints.ids.clone(),
        );
        r.register(
            "nudges",
            "Text-to-speech requests that make previews appear, by answer",
            this.nudges.nudges.clone(),
        );
        r.register(
            "nudge_characters",
            "Characters that were spoken for nudges",
            this.nudges.characters.clone(),
        );
        r.register(
            "build",
            "The version of voice-sync",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self { registry, ..this }
    }
}

impl Metrics {
    /// Counts a pass.
    pub fn passed(&self, report: &Report) {
        let Counts {
            completed,
            failed,
            superseded,
            events_published,
            events_pending,
            ..
        } = report.counts;
        self.exited(report.exit_code);
        self.duration
            .observe(Duration::from_millis(report.duration_ms).as_secs_f64());
        for (target, voices) in [("completed", completed), ("failed", failed)] {
            self.transitions
                .get_or_create(&[("target", target)])
                .inc_by(voices);
        }
        for (result, events) in [
            ("published", events_published),
            ("postponed", events_pending),
        ] {
            self.publications
                .get_or_create(&[("result", result)])
                .inc_by(events);
        }
        self.pass.stale.inc_by(superseded);
    }

    /// Counts the exit code of a pass, or of a run that failed before it began one.
    pub fn exited(&self, exit: Exit) {
        if let Some((_, code)) = EXITS.iter().find(|(known, _)| *known == exit) {
            self.passes.get_or_create(&[("exit", *code)]).inc();
        }
        self.last_exit.set(exit.code().into());
    }

    /// Records that all voices that are due were looked up, or that none was due.
    pub fn succeeded(&self) {
        self.succeeded_at(Utc::now());
        self.last_exit.set(Exit::Success.code().into());
    }

    fn succeeded_at(&self, at: DateTime<Utc>) {
        let at = at.timestamp_millis() as f64 / 1000.0;
        self.last_success.set(at.max(self.last_success.get()));
    }

    /// Sets the gauges of the backlog and the outbox.
    pub fn stand(&self, overview: &Overview) {
        let Overview {
            processing,
            oldest,
            set_aside,
            unanswerable,
            outbox,
            oldest_event,
            clock_ahead,
            last_success,
        } = overview;
        self.is_current.store(true, Ordering::Relaxed);
        if let Some(at) = last_success {
            self.succeeded_at(*at);
        }
        let seconds = |age: &Option<Duration>| age.unwrap_or_default().as_secs_f64();
        self.processing.set(*processing);
        self.oldest_processing.set(seconds(oldest));
        self.resting.set(*set_aside);
        self.unanswerable.set(*unanswerable);
        self.outbox.set(*outbox);
        self.oldest_event.set(seconds(oldest_event));
        self.clock.set(*clock_ahead);
    }

    /// Sets the gauges of the concurrency limit, the circuit breaker and the retry budget.
    pub fn press(&self, pressure: Pressure) {
        let Pressure {
            limit,
            is_open,
            retries_left,
        } = pressure;
        self.limit.set(limit.into());
        self.breaker_open.set(is_open.into());
        self.retry_tokens.set(retries_left.into());
    }

    /// All metrics for a scrape of the daemon, including those of its process.
    pub fn scrape(&self, format: Format) -> String {
        let mut process = Registry::default();
        #[cfg(target_os = "linux")]
        process.register_collector(Box::new(super::process::ProcessCollector));
        text([&self.registry, &process], format)
    }

    /// Writes the metrics to a file, and replaces the file as a whole. Counters continue from the values in the file.
    /// If the database did not answer, gauges keep the values in the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let locked = File::open(directory)?;
        // Otherwise, two runs that end at the same time would both add to the same earlier file.
        locked.lock()?;
        let earlier = match fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let has_succeeded = self.last_success.get() > 0.0;
        let is_current = self.is_current.load(Ordering::Relaxed);
        let text = prometheus_text::continued(
            &text([&self.registry], Format::Prometheus),
            &earlier,
            |name| match name {
                "voice_sync_last_exit_code" => GaugeValue::New,
                "voice_sync_last_success_timestamp_seconds" if has_succeeded => GaugeValue::New,
                "voice_sync_last_success_timestamp_seconds" => GaugeValue::Earlier,
                name if is_current || name.starts_with("voice_sync_build_info") => GaugeValue::New,
                _ => GaugeValue::EarlierOrNone,
            },
        );
        let mut file = NamedTempFile::new_in(directory)?;
        file.write_all(text.as_bytes())?;
        // node_exporter runs as another user, which must be able to read the file.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let readable = std::fs::Permissions::from_mode(0o644);
            file.as_file().set_permissions(readable)?;
        }
        file.persist(path)?;
        Ok(())
    }
}

fn text<'a>(registries: impl IntoIterator<Item = &'a Registry>, format: Format) -> String {
    const IN_MEMORY: &str = "a String takes all that is written";
    let mut text = String::new();
    for registry in registries {
        encode_registry(&mut text, registry).expect(IN_MEMORY);
    }
    encode_eof(&mut text).expect(IN_MEMORY);
    match format {
        Format::OpenMetrics => text,
        Format::Prometheus => prometheus_text::from_openmetrics(&text),
    }
}
