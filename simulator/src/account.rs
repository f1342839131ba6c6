//! The voices of the one account that the simulator holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter::repeat_with;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use tokio::time::Instant;

use crate::fate::Fate;
use crate::plan::Plan;
use crate::voice::Voice;

/// The length of the ids that ElevenLabs makes.
const ID_LENGTH: usize = 20;

/// Begins the ids of the premade voices; a number makes up the rest.
const PREMADE: &str = "Premade";

/// The names of the premade voices, over and over.
const PREMADE_NAMES: [&str; 4] = ["Rachel", "Sarah", "George", "Charlie"];

#[derive(Debug)]
pub(crate) struct Account {
    started: Instant,
    started_unix: Duration,
    premade: Vec<String>,
    added: HashMap<String, Added>,
    /// What the list shows, in the order of creation; the number is also the paging token.
    listed: BTreeMap<u64, String>,
    /// Ids that would exist without having been added, had they not been deleted.
    removed: HashSet<String>,
    next_number: u64,
    ids: Rng,
    speeches: Vec<Speech>,
}

/// A request for speech that was answered with audio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speech {
    /// The voice that spoke.
    pub voice_id: String,
    /// What it said.
    pub text: String,
    /// The model that was asked for.
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
    /// Where the next page starts, if there is one.
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

    /// Adds a voice, in place of the one that has the id already.
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

    /// Adds a voice under an id made up for it.
    pub(crate) fn create(&mut self, name: &str) -> String {
        let voice_id: String = repeat_with(|| self.ids.alphanumeric())
            .take(ID_LENGTH)
            .collect();
        self.add(&voice_id, name, None);
        voice_id
    }

    /// Whether there was such a voice.
    pub(crate) fn remove(&mut self, voice_id: &str) -> bool {
        let existed = self.find(voice_id).is_some();
        if let Some(added) = self.added.remove(voice_id) {
            self.listed.remove(&added.number);
        }
        // A synthetic voice must not come back from behind the one that was added over it.
        if self.find(voice_id).is_some() {
            self.removed.insert(voice_id.to_owned());
        }
        existed
    }

    /// Notes that a voice spoke.
    pub(crate) fn speak(&mut self, speech: Speech) {
        self.speeches.push(speech);
    }

    /// All that was spoken.
    pub(crate) fn speeches(&self) -> &[Speech] {
        &self.speeches
    }

    /// What the single lookup shows.
    pub(crate) fn single<'a>(&'a self, voice_id: &'a str) -> Option<Voice<'a>> {
        self.find(voice_id)
            .filter(|voice| voice.plan.fate != Fate::Missing)
    }

    /// Those of the asked-for voices that the list shows, from the `start`th id on.
    pub(crate) fn chosen<'a>(&'a self, ids: &'a [String], start: u64, size: usize) -> Page<'a> {
        let mut seen = HashSet::new();
        let shown = (0..)
            .zip(ids)
            .filter(move |(_, id)| seen.insert(id.as_str()))
            .skip_while(move |(number, _)| *number < start)
            .filter_map(|(number, id)| Some((number, self.shown(id)?)));
        page(shown, size)
    }

    /// The added voices that the list shows, from the one with the number `start` on.
    pub(crate) fn all(&self, start: u64, size: usize) -> Page<'_> {
        let shown = self
            .listed
            .range(start..)
            .filter_map(|(number, id)| Some((*number, self.shown(id)?)));
        page(shown, size)
    }

    /// How many voices [`Account::all`] has on all its pages.
    pub(crate) fn total(&self) -> usize {
        self.listed.len()
    }

    /// The voices that everybody has, and that page 0 of the list holds unasked.
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
