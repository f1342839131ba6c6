//! The voices in processing, by kind and by age. Pure.

use std::time::Duration;

use serde::Serialize;

/// Why a voice is in processing: the first kind that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BacklogKind {
    /// It could not be looked up or stored three times, and is skipped for a day.
    SetAside,
    /// It cannot be looked up, while the provider answers other requests.
    Unanswerable,
    /// The provider does not know it, and this is not confirmed yet.
    Missing,
    /// A professional voice that is queued or being trained.
    Training,
    /// A voice whose owner has to verify it, or to start its training.
    WaitingForOwner,
    /// In processing for longer than `--fail-after`: the next answer that confirms it fails it, or completes it,
    /// depending on `--on-timeout`.
    Overdue,
    /// Any other.
    Young,
}

impl BacklogKind {
    /// Whether it may take days, and never fails because of its age.
    pub fn takes_its_time(self) -> bool {
        match self {
            Self::Training | Self::WaitingForOwner => true,
            Self::SetAside | Self::Unanswerable | Self::Missing | Self::Overdue | Self::Young => {
                false
            }
        }
    }

    /// All kinds, the ordinary ones first.
    pub const ALL: [Self; 7] = [
        Self::Young,
        Self::Training,
        Self::WaitingForOwner,
        Self::Missing,
        Self::Overdue,
        Self::Unanswerable,
        Self::SetAside,
    ];

    /// The name in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Young => "young",
            Self::Training => "training",
            Self::WaitingForOwner => "waiting_for_owner",
            Self::Missing => "missing",
            Self::Overdue => "overdue",
            Self::Unanswerable => "unanswerable",
            Self::SetAside => "set_aside",
        }
    }

    /// The kind with this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The name for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Young => "young",
            Self::Training => "training",
            Self::WaitingForOwner => "waiting for owner",
            Self::Missing => "missing",
            Self::Overdue => "overdue",
            Self::Unanswerable => "unanswerable",
            Self::SetAside => "set aside",
        }
    }
}

/// The upper ends of all age bands but the last one, which has none.
pub const BAND_ENDS: [Duration; 7] = [
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(6 * 60 * 60),
    Duration::from_secs(24 * 60 * 60),
    Duration::from_secs(7 * 24 * 60 * 60),
];
/// Number of age bands.
pub const BANDS: usize = BAND_ENDS.len() + 1;

/// The name of each band.
pub const BAND_WORDS: [&str; BANDS] = [
    "< 1 min", "< 5 min", "< 15 min", "< 1 h", "< 6 h", "< 24 h", "< 7 d", "≥ 7 d",
];

/// The number of voices in processing, by kind and age.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog([Group; BacklogKind::ALL.len()]);

/// The voices of a kind: their number in each age band, and the age of the oldest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Group {
    bands: [u64; BANDS],
    oldest: Duration,
    /// The longest time that a voice has had no answer.
    unasked: Duration,
}

impl Backlog {
    /// Adds voices of a kind to the band with this number: the age of the oldest of them, and the longest time that
    /// one of them has had no answer. Ages beyond the last band count in it.
    pub fn add(
        &mut self,
        kind: BacklogKind,
        band: usize,
        voices: u64,
        oldest: Duration,
        unasked: Duration,
    ) {
        let group = &mut self.0[Self::place(kind)];
        group.bands[band.min(BANDS - 1)] += voices;
        group.oldest = group.oldest.max(oldest);
        group.unasked = group.unasked.max(unasked);
    }

    /// The age of the oldest voice of a kind, if there is one.
    pub fn oldest(&self, kind: BacklogKind) -> Option<Duration> {
        let group = &self.0[Self::place(kind)];
        (self.of(kind) > 0).then_some(group.oldest)
    }

    /// The longest time that a voice has had no answer. Only voices count that passes look up.
    pub fn unasked(&self) -> Duration {
        let asked = BacklogKind::ALL
            .into_iter()
            .filter(|kind| !matches!(kind, BacklogKind::SetAside | BacklogKind::Unanswerable));
        asked
            .map(|kind| self.0[Self::place(kind)].unasked)
            .max()
            .unwrap_or_default()
    }

    fn place(kind: BacklogKind) -> usize {
        match kind {
            BacklogKind::Young => 0,
            BacklogKind::Training => 1,
            BacklogKind::WaitingForOwner => 2,
            BacklogKind::Missing => 3,
            BacklogKind::Overdue => 4,
            BacklogKind::Unanswerable => 5,
            BacklogKind::SetAside => 6,
        }
    }

    /// The number of voices of a kind.
    pub fn of(&self, kind: BacklogKind) -> u64 {
        self.0[Self::place(kind)].bands.iter().sum()
    }

    /// The number of voices in each age band.
    pub fn by_age(&self) -> [u64; BANDS] {
        std::array::from_fn(|band| self.0.iter().map(|group| group.bands[band]).sum())
    }

    /// The number of all voices.
    pub fn all(&self) -> u64 {
        self.by_age().iter().sum()
    }
}

impl Serialize for Backlog {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Band {
            less_than_seconds: Option<u64>,
            voices: u64,
        }
        let ends = BAND_ENDS
            .map(|end| Some(end.as_secs()))
            .into_iter()
            .chain([None]);
        let bands = ends.zip(self.by_age());
        let bands: Vec<_> = bands
            .map(|(less_than_seconds, voices)| Band {
                less_than_seconds,
                voices,
            })
            .collect();
        let mut json = serde_json::Map::from_iter([("processing".to_owned(), self.all().into())]);
        json.extend(BacklogKind::ALL.map(|kind| (kind.as_str().to_owned(), self.of(kind).into())));
        json.insert("ages".to_owned(), serde_json::json!(bands));
        json.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_kind_and_age_band_separately() {
        let mut backlog = Backlog::default();
        for (voices, kind) in (1..).zip(BacklogKind::ALL) {
            assert_eq!(BacklogKind::parse(kind.as_str()), Some(kind));
            backlog.add(
                kind,
                voices as usize,
                voices,
                Duration::from_secs(voices),
                Duration::from_secs(voices),
            );
        }
        backlog.add(BacklogKind::Young, 99, 10, Duration::ZERO, Duration::ZERO);
        assert_eq!(
            backlog.unasked(),
            Duration::from_secs(5),
            "without those that are not looked up"
        );
        assert_eq!(
            BacklogKind::ALL.map(|kind| backlog.of(kind)),
            [11, 2, 3, 4, 5, 6, 7]
        );
        assert_eq!(backlog.by_age(), [0, 1, 2, 3, 4, 5, 6, 17]);
        assert_eq!(backlog.all(), 38);
        assert_eq!(
            backlog.oldest(BacklogKind::SetAside),
            Some(Duration::from_secs(7))
        );
        assert_eq!(Backlog::default().oldest(BacklogKind::Young), None);
        let json = serde_json::json!(backlog);
        assert_eq!(json["waiting_for_owner"], 3);
        assert_eq!(
            json["ages"][7],
            serde_json::json!({"less_than_seconds": null, "voices": 17})
        );
        assert_eq!(json["ages"][0]["less_than_seconds"], 60);
    }
}
