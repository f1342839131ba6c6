//! Finding out how far voices are: in batches where the list is there, singly where it is not.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::future::join;
use futures_util::stream::FuturesUnordered;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tracing::warn;

use super::error::{Refusal, Trouble, TroubleKind, printable};
use super::{LIST, Patience, Provider, Sending, wire};
use crate::voice::{ProviderVoiceId, Voice};

/// Most ids that one list request may name, and most voices on a page of its answer.
pub const BATCH: usize = 100;
/// A list that always has more is followed no further than this: 100 voices come in 10 pages even
/// where the provider shows its default page size of 10.
const MAX_PAGES: usize = 10;

/// A list that rejected more requests than this and answered none is not asked again.
const MAX_REJECTIONS: u32 = 8;

/// How voices are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Strategy {
    /// In batches, but singly the kinds of voices that the list keeps leaving out.
    #[default]
    Auto,
    /// Always in batches first.
    Batch,
    /// Always singly.
    Single,
}

/// What the provider answered for a voice.
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    /// How far it is. `listed` says whether the list showed it.
    Found {
        /// The voice.
        voice: Voice,
        /// Found in the list, rather than by a single lookup.
        listed: bool,
    },
    /// Asked for singly, it does not exist.
    Missing,
    /// The provider takes this id for a wrong request.
    Rejected(String),
    /// No answer.
    Unavailable(Trouble),
}

/// Answers by provider id; every id that was asked about has one.
pub type Lookups = HashMap<ProviderVoiceId, Lookup>;

/// Voices that the list showed, by their ids.
type Shown = Vec<(ProviderVoiceId, Voice)>;

/// What became of one list request.
enum Listed {
    Answered(Shown),
    /// Some pages came, then trouble: what they did not show is not to be taken for absent.
    Partly(Shown, Trouble),
    NotThere,
    Rejected,
    /// The provider failed on it: perhaps on one of the voices.
    Suspect(Trouble),
}

impl Provider {
    /// Asks about each of `ids`, which are all different, in their order, within `patience`.
    pub async fn look_up(
        &self,
        ids: &[ProviderVoiceId],
        singly: bool,
        patience: Patience<'_>,
    ) -> Lookups {
        let mut lookups = Lookups::with_capacity(ids.len());
        self.probe(&mut lookups, ids, patience).await;
        let mut batches = match singly || self.has_no_list() {
            true => Vec::new(),
            false => {
                let open = ids.iter().filter(|id| !lookups.contains_key(*id));
                let open: Vec<_> = open.cloned().collect();
                open.chunks(BATCH).map(<[_]>::to_vec).collect()
            }
        };
        while let Some(batch) = batches.pop() {
            match self.list(&batch, Sending::Usual, patience).await {
                Listed::Answered(voices) => take(&mut lookups, voices),
                Listed::Partly(voices, trouble) => {
                    take(&mut lookups, voices);
                    give_up(&mut lookups, batch, &trouble);
                }
                Listed::NotThere => {
                    if !self.list_is_gone.swap(true, Ordering::Relaxed) {
                        warn!(url = %self.base, "there is no list of voices at this URL; asking for each singly");
                    }
                    break;
                }
                // Somewhere in it is an id that the provider chokes on.
                Listed::Rejected if batch.len() > 1 && !self.has_no_list() => {
                    let (left, right) = batch.split_at(batch.len() / 2);
                    batches.extend([left.to_vec(), right.to_vec()]);
                }
                Listed::Rejected => {}
                Listed::Suspect(trouble) => {
                    self.corner(&mut lookups, batch, &trouble, patience).await;
                }
            }
        }
        let mut singles: FuturesUnordered<_> = ids
            .iter()
            .filter(|id| !lookups.contains_key(*id))
            .map(|id| async move { (id.clone(), self.single(id, patience).await) })
            .collect();
        let mut answers = Vec::with_capacity(singles.len());
        while let Some(answer) = singles.next().await {
            answers.push(answer);
        }
        drop(singles);
        lookups.extend(answers);
        lookups
    }

    /// Where the provider did not answer lately, asks about one voice first, and not always the same
    /// one: a whole batch would fail on a single bad voice, and keep all others waiting for good.
    async fn probe(&self, lookups: &mut Lookups, ids: &[ProviderVoiceId], patience: Patience<'_>) {
        let _turn = self.probing.lock().await;
        if let Some(id) = fastrand::choice(ids).filter(|_| self.traffic.is_probing()) {
            match self.single(id, patience).await {
                // The batch asks again, unless the breaker is open.
                Lookup::Unavailable(_) => {}
                answer @ (Lookup::Found { .. } | Lookup::Missing | Lookup::Rejected(_)) => {
                    lookups.insert(id.clone(), answer);
                }
            }
        }
    }

    /// Halves a batch that the provider failed on until the voice that it fails on is alone. Where
    /// it fails on both halves, it is the provider that is in trouble, and no voice.
    async fn corner(
        &self,
        lookups: &mut Lookups,
        mut suspects: Vec<ProviderVoiceId>,
        trouble: &Trouble,
        patience: Patience<'_>,
    ) {
        while suspects.len() > 1 {
            let others = suspects.split_off(suspects.len() / 2);
            let halves = join(
                self.list(&suspects, Sending::Suspecting, patience),
                self.list(&others, Sending::Suspecting, patience),
            );
            suspects = match halves.await {
                (Listed::Answered(some), Listed::Answered(rest)) => {
                    take(lookups, some);
                    take(lookups, rest);
                    return;
                }
                (Listed::Answered(some), _) => {
                    take(lookups, some);
                    others
                }
                (_, Listed::Answered(some)) => {
                    take(lookups, some);
                    suspects
                }
                (_, _) => {
                    suspects.extend(others);
                    return give_up(lookups, suspects, trouble);
                }
            };
        }
    }

    /// `GET /v2/voices?voice_ids=…`, with the pages that follow. Page 0 may hold voices nobody asked
    /// for, and absent ones are simply left out.
    async fn list(
        &self,
        ids: &[ProviderVoiceId],
        sending: Sending,
        patience: Patience<'_>,
    ) -> Listed {
        let mut query = format!("{LIST}?page_size={BATCH}&include_total_count=false");
        for id in ids {
            query.push_str("&voice_ids=");
            query.push_str(&encoded(id.as_str()));
        }
        let mut voices = Shown::with_capacity(ids.len());
        let mut asked_for: HashMap<&str, &ProviderVoiceId> =
            ids.iter().map(|id| (id.as_str(), id)).collect();
        let mut token: Option<String> = None;
        for page in 0..MAX_PAGES {
            let path = match &token {
                None => query.clone(),
                Some(token) => format!("{query}&next_page_token={}", encoded(token)),
            };
            let answer = self
                .get(&path, sending, patience)
                .await
                .and_then(|body| wire::list_page(&body).map_err(|error| self.unreadable(&error)));
            let next = match answer {
                Ok(next) => next,
                Err(refusal) => return self.not_listed(refusal, page, voices),
            };
            self.list_answered.store(true, Ordering::Relaxed);
            let before = asked_for.len();
            for voice in next.voices {
                if let Some(id) = asked_for.remove(voice.voice_id.as_str()) {
                    voices.push((id.clone(), voice));
                }
            }
            token = next.next_page_token;
            let progress = asked_for.len() < before;
            if asked_for.is_empty() || token.is_none() || !progress {
                break;
            }
        }
        Listed::Answered(voices)
    }

    fn not_listed(&self, refusal: Refusal, page: usize, voices: Shown) -> Listed {
        match refusal {
            Refusal::NoSuchEndpoint(_) | Refusal::Forbidden(..) if page == 0 => Listed::NotThere,
            Refusal::NotFound | Refusal::Rejected(..) if page == 0 => self.rejected(),
            Refusal::Unavailable(trouble) => match trouble.kind {
                TroubleKind::TooLarge | TroubleKind::Unreadable if page == 0 => Listed::Rejected,
                TroubleKind::TooLarge | TroubleKind::Unreadable => Listed::Answered(voices),
                TroubleKind::Internal if page == 0 && !self.is_down() => Listed::Suspect(trouble),
                // A provider that answers other requests may fail on one voice in other ways, too.
                TroubleKind::Status | TroubleKind::Timeout
                    if page == 0 && !self.is_down() && self.was_answered() =>
                {
                    Listed::Suspect(trouble)
                }
                TroubleKind::Connect
                | TroubleKind::Timeout
                | TroubleKind::Broken
                | TroubleKind::Internal
                | TroubleKind::Status
                | TroubleKind::Throttled
                | TroubleKind::NotAsked => Listed::Partly(voices, trouble),
            },
            Refusal::NotFound
            | Refusal::NoSuchEndpoint(_)
            | Refusal::Forbidden(..)
            | Refusal::Rejected(..)
            | Refusal::Throttled { .. }
            | Refusal::Unauthorized(..) => Listed::Partly(voices, self.trouble(refusal)),
        }
    }

    /// A list that only ever rejects is as good as none.
    fn rejected(&self) -> Listed {
        let rejections = self.list_rejections.fetch_add(1, Ordering::Relaxed) + 1;
        match rejections > MAX_REJECTIONS && !self.list_answered.load(Ordering::Relaxed) {
            true => Listed::NotThere,
            false => Listed::Rejected,
        }
    }

    /// `GET /v1/voices/{voice_id}`.
    async fn single(&self, id: &ProviderVoiceId, patience: Patience<'_>) -> Lookup {
        let path = format!("/v1/voices/{}", encoded(id.as_str()));
        let answer = self
            .get(&path, Sending::Usual, patience)
            .await
            .and_then(|body| wire::voice(&body).map_err(|error| self.unreadable(&error)));
        match answer {
            Ok(voice) if voice.voice_id == id.as_str() => Lookup::Found {
                voice,
                listed: false,
            },
            Ok(_) => Lookup::Unavailable(Trouble::new(
                TroubleKind::Unreadable,
                "the answer is about another voice",
            )),
            Err(Refusal::NotFound) => Lookup::Missing,
            // Under a key that is good for other voices, it is about this one.
            Err(Refusal::Forbidden(status, said)) if self.was_answered() => {
                Lookup::Rejected(format!("HTTP {status} {said}").trim_end().to_owned())
            }
            Err(Refusal::Rejected(status, said)) => {
                Lookup::Rejected(format!("HTTP {status} {said}").trim_end().to_owned())
            }
            Err(
                refusal @ (Refusal::NoSuchEndpoint(_)
                | Refusal::Unauthorized(..)
                | Refusal::Forbidden(..)
                | Refusal::Throttled { .. }
                | Refusal::Unavailable(_)),
            ) => Lookup::Unavailable(self.trouble(refusal)),
        }
    }

    fn unreadable(&self, error: &serde_json::Error) -> Refusal {
        let detail = printable(&self.without_key(&error.to_string()));
        Refusal::Unavailable(Trouble::new(TroubleKind::Unreadable, detail))
    }

    /// What a refusal means for voices that it is not about. A refused key is remembered: nothing
    /// more is asked with it.
    fn trouble(&self, refusal: Refusal) -> Trouble {
        let text = refusal.to_string();
        match refusal {
            Refusal::Unauthorized(..) | Refusal::Forbidden(..) => {
                self.key_refused.get_or_init(|| text.clone());
                Trouble::new(TroubleKind::Status, text)
            }
            Refusal::Throttled { told, .. } => Trouble {
                kind: TroubleKind::Throttled,
                detail: text,
                told,
            },
            Refusal::Unavailable(trouble) => trouble,
            Refusal::NotFound | Refusal::NoSuchEndpoint(_) | Refusal::Rejected(..) => {
                Trouble::new(TroubleKind::Status, text)
            }
        }
    }
}

/// Percent-encodes all but the characters that every id may have.
fn encoded(text: &str) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');
    utf8_percent_encode(text, ENCODED).to_string()
}

fn take(lookups: &mut Lookups, voices: Shown) {
    lookups.extend(voices.into_iter().map(|(id, voice)| {
        let listed = true;
        (id, Lookup::Found { voice, listed })
    }));
}

fn give_up(lookups: &mut Lookups, batch: Vec<ProviderVoiceId>, trouble: &Trouble) {
    for id in batch {
        lookups
            .entry(id)
            .or_insert_with(|| Lookup::Unavailable(trouble.clone()));
    }
}
