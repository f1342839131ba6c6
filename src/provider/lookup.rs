//! Looks voices up: in batches where the provider has a list, one by one where it has none.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;
use tracing::warn;

use super::error::ProviderError;
use super::request::Purpose;
use super::{LIST, Provider, RequestDeadline, wire};
use crate::core::bisect::{self, Split, split};
use crate::core::lookup::{Lookup, Lookups, Unavailable, UnavailableKind};
use crate::core::voice::{ProviderVoiceId, Voice};
use crate::provider::state::backoff::{self, Cause};

/// The maximum number of ids in one list request, and of voices on a page of its answer.
pub const BATCH: usize = 100;
/// The maximum number of pages that are followed, for a list that always has more. 100 voices need 10 pages if the
/// provider uses its default page size of 10.
const MAX_PAGES: usize = 10;

/// How long the list is not used after it did not exist, before it is tried again.
const LIST_IS_GONE_FOR: Duration = Duration::from_secs(10 * 60);
/// A list that rejected more requests than this and answered none is not used any more.
const MAX_REJECTIONS: u32 = 8;

/// How voices are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Strategy {
    /// In batches, but kinds of voices that the list does not return are looked up one by one.
    #[default]
    Auto,
    /// Always in batches first.
    Batch,
    /// Always one by one.
    Single,
}

/// How one step of a lookup treats its voices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    Batch,
    /// All in one request, as a part of a batch that failed.
    Part,
    /// One by one.
    Single,
    /// One by one, because each of them may have caused the failure of a part of a batch.
    OneByOne,
    /// One by one, because they failed alone in an earlier pass.
    Isolated,
}

/// The result of one step of a lookup.
#[derive(Debug, Default)]
pub struct Step {
    /// Answers about voices.
    pub lookups: Lookups,
    /// The other voices: their request failed as a whole, perhaps because of one of them. [`next_steps`] returns the
    /// requests that follow.
    pub failed: Vec<ProviderVoiceId>,
}

/// Voices that the list returned, by id.
type Shown = Vec<(ProviderVoiceId, Voice)>;

/// The result of one list request.
enum Listed {
    Answered(Shown),
    /// Some pages came, then an error: voices that were not returned are not missing.
    Partly(Shown, Unavailable),
    NotThere,
    /// Some pages came, then a failure that one of the other voices may have caused.
    Failed(Shown),
}

impl Provider {
    /// Looks up each of `ids`, which must all be different, until `deadline`: step after step, until each has an
    /// answer or is known to have none.
    pub async fn look_up(
        &self,
        ids: &[ProviderVoiceId],
        singly: bool,
        deadline: RequestDeadline<'_>,
    ) -> Lookups {
        let mode = match singly {
            true => Mode::Single,
            false => Mode::Batch,
        };
        let batches = ids.chunks(BATCH).map(|batch| (mode, batch.to_vec()));
        let mut queue: VecDeque<_> = batches.collect();
        let mut lookups = Lookups::with_capacity(ids.len());
        while let Some((mode, batch)) = queue.pop_front() {
            let step = self.step(&batch, mode, deadline).await;
            lookups.extend(step.lookups);
            if !step.failed.is_empty() {
                queue.extend(next_steps(step.failed));
            }
        }
        lookups
    }

    /// One step: a list request for all of `ids`, or one request each. Voices that the list does not return are
    /// looked up one by one. If the provider failed lately, a liveness request comes first.
    pub async fn step(
        &self,
        ids: &[ProviderVoiceId],
        mode: Mode,
        deadline: RequestDeadline<'_>,
    ) -> Step {
        let mut step = Step {
            lookups: Lookups::with_capacity(ids.len()),
            failed: Vec::new(),
        };
        if ids.is_empty() {
            return step;
        }
        if !self.is_ready(deadline).await {
            let failure = Unavailable::new(UnavailableKind::NotAsked, "provider unavailable");
            give_up(&mut step.lookups, ids, &failure);
            return step;
        }
        let purpose = match mode {
            Mode::Batch => Some(Purpose::Batch),
            Mode::Part => Some(Purpose::Isolation),
            Mode::Single | Mode::OneByOne | Mode::Isolated => None,
        };
        if let Some(purpose) = purpose.filter(|_| !self.has_no_list()) {
            match self.list(ids, purpose, deadline).await {
                Listed::Answered(voices) => take(&mut step.lookups, voices),
                Listed::Partly(voices, failure) => {
                    take(&mut step.lookups, voices);
                    give_up(&mut step.lookups, ids, &failure);
                }
                Listed::Failed(voices) => {
                    take(&mut step.lookups, voices);
                    step.failed = unanswered(&step.lookups, ids);
                    return step;
                }
                Listed::NotThere => {
                    if !self.has_no_list() {
                        warn!(url = %self.base, "no list of voices at this URL; looking voices up one by one for 10 \
                            minutes");
                    }
                    self.pass_over_list(LIST_IS_GONE_FOR);
                }
            }
        }
        let rest = unanswered(&step.lookups, ids);
        step.lookups.extend(match mode {
            Mode::Batch | Mode::Part | Mode::Single => {
                self.each(&rest, Purpose::Single, None, deadline).await
            }
            Mode::OneByOne => self.one_by_one(&rest, deadline).await,
            Mode::Isolated => self.each(&rest, Purpose::Isolated, None, deadline).await,
        });
        step
    }

    /// Looks voices up one by one, side by side.
    async fn each(
        &self,
        ids: &[ProviderVoiceId],
        purpose: Purpose,
        since: Option<Instant>,
        deadline: RequestDeadline<'_>,
    ) -> Lookups {
        let singles: FuturesUnordered<_> = ids
            .iter()
            .map(|id| async move { (id.clone(), self.single(id, purpose, since, deadline).await) })
            .collect();
        singles.collect().await
    }

    /// Same as [`Self::each`], and repeats the failed ones once if the failure may have been accidental.
    async fn one_by_one(&self, ids: &[ProviderVoiceId], deadline: RequestDeadline<'_>) -> Lookups {
        let begun = Instant::now();
        let mut lookups = self.each(ids, Purpose::Isolation, None, deadline).await;
        let failed = lookups.iter().filter_map(|(id, lookup)| match lookup {
            Lookup::Unanswerable(failure) if failure.kind != UnavailableKind::Timeout => Some(id),
            Lookup::Unanswerable(_)
            | Lookup::Found { .. }
            | Lookup::Missing
            | Lookup::Rejected(_)
            | Lookup::Unavailable(_) => None,
        });
        let failed: Vec<_> = failed.cloned().collect();
        let pause = backoff::pause(1, Cause::Unavailable, None, fastrand::f64());
        if !failed.is_empty()
            && bisect::is_worth_repeating(failed.len(), ids.len())
            && deadline.sleep_until(Instant::now() + pause).await
        {
            let again = self.each(&failed, Purpose::Isolation, Some(begun), deadline);
            lookups.extend(again.await);
        }
        lookups
    }

    /// `GET /v2/voices?voice_ids=…`, with the pages that follow. The first page may contain voices that were not
    /// requested. Voices that do not exist are not returned.
    async fn list(
        &self,
        ids: &[ProviderVoiceId],
        purpose: Purpose,
        deadline: RequestDeadline<'_>,
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
                .get(&path, purpose, None, deadline, wire::list_page)
                .await;
            let next = match answer {
                Ok(next) => next,
                Err(error) => return self.not_listed(error, page, voices),
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

    fn not_listed(&self, error: ProviderError, page: usize, voices: Shown) -> Listed {
        match error {
            ProviderError::NoSuchEndpoint(_) | ProviderError::Forbidden(..) if page == 0 => {
                Listed::NotThere
            }
            ProviderError::NotFound | ProviderError::Rejected(..) if page == 0 => {
                self.rejected(voices)
            }
            ProviderError::Unanswerable(_) => Listed::Failed(voices),
            ProviderError::NotFound
            | ProviderError::NoSuchEndpoint(_)
            | ProviderError::Forbidden(..)
            | ProviderError::Rejected(..)
            | ProviderError::Throttled { .. }
            | ProviderError::Unauthorized(..)
            | ProviderError::Unavailable(_) => Listed::Partly(voices, self.failure(error)),
        }
    }

    /// A list that only ever rejects requests is treated like no list.
    fn rejected(&self, voices: Shown) -> Listed {
        let rejections = self.list_rejections.fetch_add(1, Ordering::Relaxed) + 1;
        match rejections > MAX_REJECTIONS && !self.list_answered.load(Ordering::Relaxed) {
            true => Listed::NotThere,
            false => Listed::Failed(voices),
        }
    }

    /// `GET /v1/voices/{voice_id}`.
    async fn single(
        &self,
        id: &ProviderVoiceId,
        purpose: Purpose,
        since: Option<Instant>,
        deadline: RequestDeadline<'_>,
    ) -> Lookup {
        let path = format!("/v1/voices/{}", encoded(id.as_str()));
        match self.get(&path, purpose, since, deadline, wire::voice).await {
            Ok(voice) if voice.voice_id == id.as_str() => Lookup::Found {
                voice,
                listed: false,
            },
            Ok(_) => Lookup::Unanswerable(Unavailable::new(
                UnavailableKind::Unreadable,
                "the answer is about another voice",
            )),
            Err(ProviderError::NotFound) => Lookup::Missing,
            Err(ProviderError::Unanswerable(failure)) => Lookup::Unanswerable(failure),
            // The key works for other voices, so the error is about this one.
            Err(ProviderError::Forbidden(status, said)) if self.was_answered() => {
                Lookup::Rejected(format!("HTTP {status} {said}").trim_end().to_owned())
            }
            Err(ProviderError::Rejected(status, said)) => {
                Lookup::Rejected(format!("HTTP {status} {said}").trim_end().to_owned())
            }
            Err(
                error @ (ProviderError::NoSuchEndpoint(_)
                | ProviderError::Unauthorized(..)
                | ProviderError::Forbidden(..)
                | ProviderError::Throttled { .. }
                | ProviderError::Unavailable(_)),
            ) => Lookup::Unavailable(self.failure(error)),
        }
    }

    /// What an error means for voices that it is not about. If the key is refused, this is stored, and no more
    /// requests are sent.
    fn failure(&self, error: ProviderError) -> Unavailable {
        let text = error.to_string();
        match error {
            ProviderError::Unauthorized(..) | ProviderError::Forbidden(..) => {
                self.key_refused.get_or_init(|| text.clone());
                Unavailable::new(UnavailableKind::Status, text)
            }
            ProviderError::Throttled { retry_after, .. } => Unavailable {
                kind: UnavailableKind::Throttled,
                detail: text,
                retry_after,
            },
            ProviderError::Unavailable(failure) | ProviderError::Unanswerable(failure) => failure,
            ProviderError::NotFound
            | ProviderError::NoSuchEndpoint(_)
            | ProviderError::Rejected(..) => Unavailable::new(UnavailableKind::Status, text),
        }
    }
}

/// The requests that follow for voices whose request failed.
pub fn next_steps<T>(failed: Vec<T>) -> Vec<(Mode, Vec<T>)> {
    match split(failed) {
        Split::Parts(parts) => parts.into_iter().map(|part| (Mode::Part, part)).collect(),
        Split::OneByOne(voices) => vec![(Mode::OneByOne, voices)],
    }
}

/// Percent-encodes everything but the characters that any id may contain.
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

/// The voices without an answer.
fn unanswered(lookups: &Lookups, ids: &[ProviderVoiceId]) -> Vec<ProviderVoiceId> {
    let unanswered = ids.iter().filter(|id| !lookups.contains_key(*id));
    unanswered.cloned().collect()
}

fn give_up(lookups: &mut Lookups, ids: &[ProviderVoiceId], failure: &Unavailable) {
    for id in unanswered(lookups, ids) {
        lookups.insert(id, Lookup::Unavailable(failure.clone()));
    }
}
