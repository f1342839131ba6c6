//! The voices of the simulator's only account.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter::repeat_with;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use tokio::time::Instant;

use crate::fate::Fate;
use crate::plan::Plan;
use crate::voice::Voice;

/// The length of ElevenLabs' ids.
const ID_LENGTH: usize = 20;

/// The prefix of the ids of premade voices; a number follows.
const PREMADE: &str = "Premade";

/// The names of the premade voices, repeated as often as needed.
const PREMADE_NAMES: [&str; 4] = ["Rachel", "Sarah", "George", "Charlie"];

#[derive(Debug)]
pub(crate) struct Account {
    started: Instant,
    started_unix: Duration,
    premade: Vec<String>,
    added: HashMap<String, Added>,
    /// The ids in the list, in the order of creation. The number is also the paging token.
    listed: BTreeMap<u64, String>,
    /// Deleted ids that would otherwise exist without having been added.
    removed: HashSet<String>,
    next_number: u64,
    ids: Rng,
    speeches: Vec<Speech>,
}

/// A request for speech that was answered with audio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speech {
    /// The id of the voice.
    pub voice_id: String,
    /// The spoken text.
    pub text: String,
    /// The requested model.
    pub model_id: String,
}

#[derive(Debug)]
struct Added {
    name: String,
    plan: Plan,
    at: Instant,
    number: u64,
}

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    pub(crate) voices: Vec<Voice<'a>>,
    /// The start of the next page, if there is one.
    pub(crate) next: Option<u64>,
}

impl Account {
    pub(crate) fn new(started: Instant, default_voices: usize, ids: Rng) -> Self {
        let digits = ID_LENGTH - PREMADE.len();
        Self {
            started,
            started_unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            premade: (0..default_voices)
                .map(|number| format!("{PREMADE}{number:0digits$}"))
                .collect(),
            added: HashMap::new(),
            listed: BTreeMap::new(),
            removed: HashSet::new(),
            next_number: 0,
            ids,
            speeches: Vec::new(),
        }
    }

    /// Adds a voice. It replaces a voice with the same id.
    pub(crate) fn add(&mut self, voice_id: &str, name: &str, plan: Option<Plan>) {
        self.remove(voice_id);
        self.removed.remove(voice_id);
        let plan = plan
            .or_else(|| Plan::from_name(name))
            .or_else(|| Plan::from_id(voice_id))
            .unwrap_or_default();
        let number = self.next_number;
        self.next_number += 1;
        if !matches!(plan.fate, Fate::Missing | Fate::Unlisted) {
            self.listed.insert(number, voice_id.to_owned());
        }
        let added = Added {
            name: name.to_owned(),
            plan,
            at: Instant::now(),
            number,
        };
        self.added.insert(voice_id.to_owned(), added);
    }

    /// Adds a voice under a new id.
    pub(crate) fn create(&mut self, name: &str) -> String {
        let voice_id: String = repeat_with(|| self.ids.alphanumeric())
            .take(ID_LENGTH)
            .collect();
        self.add(&voice_id, name, None);
        voice_id
    }

    /// Removes a voice. Returns whether it existed.
    pub(crate) fn remove(&mut self, voice_id: &str) -> bool {
        let existed = self.find(voice_id).is_some();
        if let Some(added) = self.added.remove(voice_id) {
            self.listed.remove(&added.number);
        }
        // Without this, a synthetic voice would reappear after the voice that replaced it was deleted.
        if self.find(voice_id).is_some() {
            self.removed.insert(voice_id.to_owned());
        }
        existed
    }

    /// Records a request for speech.
    pub(crate) fn speak(&mut self, speech: Speech) {
        self.speeches.push(speech);
    }

    /// All requests for speech that were answered with audio.
    pub(crate) fn speeches(&self) -> &[Speech] {
        &self.speeches
    }

    /// The voice that a single lookup returns.
    pub(crate) fn single<'a>(&'a self, voice_id: &'a str) -> Option<Voice<'a>> {
        self.find(voice_id)
            .filter(|voice| voice.plan.fate != Fate::Missing)
    }

    /// The requested voices that the list returns, beginning with the id at index `start`.
    pub(crate) fn chosen<'a>(&'a self, ids: &'a [String], start: u64, size: usize) -> Page<'a> {
        let mut seen = HashSet::new();
        let shown = (0..)
            .zip(ids)
            .filter(move |(_, id)| seen.insert(id.as_str()))
            .skip_while(move |(number, _)| *number < start)
            .filter_map(|(number, id)| Some((number, self.shown(id)?)));
        page(shown, size)
    }

    /// The added voices that the list returns, beginning with the number `start`.
    pub(crate) fn all(&self, start: u64, size: usize) -> Page<'_> {
        let shown = self
            .listed
            .range(start..)
            .filter_map(|(number, id)| Some((*number, self.shown(id)?)));
        page(shown, size)
    }

    /// The number of voices on all pages of [`Account::all`].
    pub(crate) fn total(&self) -> usize {
        self.listed.len()
    }

    /// The voices that every account has. Page 0 of the list contains them although they were not requested.
    pub(crate) fn premade(&self) -> impl Iterator<Item = Voice<'_>> {
        self.premade.iter().filter_map(|id| self.find(id))
    }

    fn shown<'a>(&'a self, voice_id: &'a str) -> Option<Voice<'a>> {
        self.single(voice_id)
            .filter(|voice| voice.plan.fate != Fate::Unlisted)
    }

    fn find<'a>(&'a self, voice_id: &'a str) -> Option<Voice<'a>> {
        if let Some(added) = self.added.get(voice_id) {
            return Some(self.voice(voice_id, &added.name, added.plan, added.at));
        }
        if self.removed.contains(voice_id) {
            return None;
        }
        if let Some(number) = self.premade.iter().position(|id| id == voice_id) {
            let name = PREMADE_NAMES[number % PREMADE_NAMES.len()];
            let mut voice = self.voice(voice_id, name, Plan::default(), self.started);
            voice.premade = true;
            return Some(voice);
        }
        let plan = Plan::from_id(voice_id)?;
        Some(self.voice(voice_id, voice_id, plan, self.started))
    }

    fn voice<'a>(&self, id: &'a str, name: &'a str, plan: Plan, at: Instant) -> Voice<'a> {
        let created = self.started_unix + at.duration_since(self.started);
        Voice {
            id,
            name,
            plan,
            age: at.elapsed(),
            created_at_unix: created.as_secs(),
            has_spoken: plan.fate == Fate::Silent
                && self.speeches.iter().any(|speech| speech.voice_id == id),
            premade: false,
        }
    }
}

fn page<'a>(mut shown: impl Iterator<Item = (u64, Voice<'a>)>, size: usize) -> Page<'a> {
    let voices = shown.by_ref().take(size).map(|(_, voice)| voice).collect();
    let next = shown.next().map(|(number, _)| number);
    Page { voices, next }
}
