//! One pass over the voices in processing: claim → look up → judge → apply → relay.
//!
//! Two kinds of workers share them. Askers claim, look up and judge a batch after the other; there are
//! a few more of them than requests are allowed, so that the provider is kept busy while others claim.
//! Writers apply and relay what is judged. Both do in one statement whatever waits to be done: the busier
//! the database, the fewer statements it gets. No transaction is open and no row is locked while the
//! provider is asked.

mod closing;
mod cursor;
mod isolation;
mod pace;
mod progress;
mod publishing;
mod queue;

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::{join, join_all};
use tokio::sync::{Mutex, mpsc};
use tokio::task::yield_now;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use self::cursor::{Cursor, Place};
use self::isolation::UnderWay;
pub(crate) use self::pace::LONGEST_HOLD;
use self::progress::{Apart, Claims, Progress};
use crate::events::OutboxEvent;
use crate::events::queue::Queue;
use crate::events::relay::Relay;
use crate::isolate::{Split, split};
use crate::meters::{PassMeters, Reason};
use crate::provider::error::{Trouble, TroubleKind, printable};
use crate::provider::lookup::{BATCH, Lookup, Lookups, Mode, Step, Strategy};
use crate::provider::{Patience, Provider};
use crate::report::{Counts, Report};
use crate::schedule;
use crate::store::{
    Agenda, Applied, Claimed, Isolated, LEASE, Memory, Note, Record, Seen, Store, StoreError,
    Target, Transition, Upcoming,
};
use crate::verdict::{Rules, Verdict, judge, storable};
use crate::voice::{RowId, Voice};

/// Askers beyond the requests that are allowed at once.
const SPARE_ASKERS: usize = 2;
/// While one publishes, another one applies.
const WRITERS: usize = 2;
/// Batches that one statement claims or applies at the most.
const BATCHES_AT_ONCE: usize = 10;
/// Voices that are isolated from the start of a pass, at the most.
const ISOLATED_AT_ONCE: u32 = 10_000;
/// How long they are asked about: they are likely to be bad, and some bad voices take all the time there is. The
/// next pass goes on with those that it was longest ago for.
const ISOLATED_TIME: Duration = Duration::from_secs(20);
/// The same where other voices may come due meanwhile.
const SHORT_ISOLATED_TIME: Duration = Duration::from_secs(2);
/// Part of the lease that is kept for writing the answers down.
const LEASE_RESERVE: Duration = Duration::from_secs(10);

/// Which voices a pass is about, and how far it goes.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Which voices.
    pub which: Which,
    /// At most so many voices.
    pub limit: Option<u64>,
    /// No longer than this.
    pub max_runtime: Option<Duration>,
    /// Read and ask, but write nothing.
    pub dry_run: bool,
    /// The process goes on after this pass: what others hold is left to a later one.
    pub goes_on: bool,
}

/// Which voices in processing a pass is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    #[default]
    All,
    /// Those with these row or provider ids.
    Named(Vec<String>),
    /// Those that are due, topped up with some that will be next.
    Due(Agenda),
}

impl Which {
    /// Whether the application's hints are heeded as well.
    fn takes_hints(&self) -> bool {
        match self {
            Self::All | Self::Due(_) => true,
            Self::Named(_) => false,
        }
    }
}

/// What a pass works with.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The application's table and voice-sync's own.
    pub store: &'a Store,
    /// Who is asked.
    pub provider: &'a Provider,
    /// Where events go, if anywhere.
    pub relay: Option<&'a Relay>,
    /// Where the application notes which voices wait, if it does.
    pub queue: Option<&'a Queue>,
    /// How answers are judged.
    pub rules: &'a Rules,
    /// How long a voice must be missing before it fails.
    pub missing_after: Duration,
    /// In batches or singly.
    pub strategy: Strategy,
    /// Which voices, and how far.
    pub scope: &'a Scope,
    /// Stops claiming when it is cancelled.
    pub stop: &'a CancellationToken,
    /// Where it counts what it does.
    pub meters: &'a PassMeters,
    /// Is told the counts after every batch.
    pub observe: &'a dyn Fn(&Counts),
}

/// Voices that go through the steps together.
struct Batch {
    /// Where in the walk over the table it was claimed; nowhere, if by name.
    place: Option<Place>,
    /// In the order of their positions.
    voices: Vec<Claimed>,
    /// Taken before the lease began, so that it never seems longer than it is.
    claimed_at: Instant,
    /// How to ask about them.
    mode: Mode,
}

/// What a worker does next.
enum Next {
    LookUp(Batch),
    /// Wait: what others have under way may come back in parts.
    Wait,
    Nothing,
}

/// What judging a batch came to.
struct Judged {
    transitions: Vec<Transition>,
    notes: Vec<Note>,
    /// As of the batch.
    claimed_at: Instant,
}

impl Pass<'_> {
    /// Runs the pass to its end. Whatever happened is in the report, a failing database included.
    pub async fn run(&self) -> Report {
        let (started, started_at) = (Instant::now(), Utc::now());
        let (memory, unreadable) = match self.store.remember(self.provider.account()).await {
            Ok(memory) => (memory, None),
            Err(error) => (Memory::default(), Some(error)),
        };
        let Scope {
            which,
            limit,
            max_runtime,
            dry_run: _,
            goes_on: _,
        } = self.scope;
        let cursor = match which {
            Which::All => Cursor::over_all(*limit, memory.resume_after),
            Which::Named(names) => Cursor::over_names(*limit, names.clone()),
            Which::Due(agenda) => {
                let rows = self.topped_up(agenda, &memory.unlisted);
                Cursor::over_due(*limit, rows, agenda.read_at)
            }
        };
        let isolated = match which {
            Which::All if memory.any_isolated => Apart::Unread,
            Which::All | Which::Named(_) => Apart::Nothing,
            Which::Due(agenda) => Apart::Known(isolated(agenda)),
        };
        let progress = Progress::new(
            Uuid::new_v4(),
            started,
            (self.provider.requests(), self.provider.retries()),
            max_runtime.and_then(|longest| started.checked_add(longest)),
            cursor,
            isolated,
            memory.unlisted,
        );
        let outcome = match unreadable {
            Some(error) => Err(error),
            None => {
                self.provider.resume_budget(memory.spent);
                self.begin(&progress, memory.standing).await
            }
        };
        if let Err(error) = outcome {
            progress.database_failed(&error);
        }
        self.close(progress, started_at).await
    }

    /// Those that are due, and as many of the next as requests have room for: only such as the list
    /// is known to show, as others would take a request of their own.
    fn topped_up(&self, agenda: &Agenda, unlisted: &HashSet<String>) -> Vec<RowId> {
        let room = match self.strategy == Strategy::Single || self.provider.has_no_list() {
            true => 1,
            false => BATCH,
        };
        let is_due = |voice: &&Upcoming| voice.due_in.is_zero();
        let others = agenda.voices.iter().filter(|voice| !voice.is_isolated);
        let (due, later): (Vec<_>, Vec<_>) = others.partition(is_due);
        let spare = schedule::topped_up(due.len(), room) - due.len();
        let is_listed = |kind: &String| !unlisted.contains(kind);
        let free = later
            .into_iter()
            .filter(|voice| voice.was_found && voice.kind.as_ref().is_some_and(is_listed));
        let chosen = due.into_iter().chain(free.take(spare));
        chosen.map(|voice| voice.row.clone()).collect()
    }

    /// The five steps, for all batches.
    async fn all_batches(&self, progress: &Progress) -> Result<(), StoreError> {
        let askers = self.askers();
        let (judged, to_write) = mpsc::channel(askers);
        let to_write = Mutex::new(to_write);
        let done = CancellationToken::new();
        let asking = join_all((0..askers).map(|_| self.ask(progress, judged.clone())));
        drop(judged);
        let writing = async {
            let outcomes = join_all((0..WRITERS).map(|_| self.write(progress, &to_write))).await;
            to_write.lock().await.close();
            done.cancel();
            outcomes
        };
        let ((asked, written), in_touch) =
            join(join(asking, writing), self.keep_in_touch(progress, &done)).await;
        asked.into_iter().chain(written).chain([in_touch]).collect()
    }

    /// Claims, looks up and judges one batch after the other until there are no more.
    async fn ask(
        &self,
        progress: &Progress,
        judged: mpsc::Sender<Judged>,
    ) -> Result<(), StoreError> {
        while let Some((mut batch, _under_way)) = self.claim(progress).await? {
            let step = self.look_up(progress, &batch).await;
            progress.isolation.push(batch.take_failed(&step.failed));
            let answers = self.judge(progress, &batch, step.lookups);
            // Nobody takes it where all writers failed, which they have said.
            if judged.send(answers).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Applies and relays what is judged, as much as waits, until nothing more will be.
    async fn write(
        &self,
        progress: &Progress,
        judged: &Mutex<mpsc::Receiver<Judged>>,
    ) -> Result<(), StoreError> {
        // What the database refuses to one writer, it would refuse to the other one in its turn.
        while !self.has_no_database(progress) {
            let mut batches = Vec::new();
            let most = progress.bulk.load(Ordering::Relaxed);
            let waiting = judged.lock().await.recv_many(&mut batches, most).await;
            if waiting == 0 {
                break;
            }
            let began = Instant::now();
            let written = async {
                let events = self.apply(progress, batches).await?;
                let bulk = pace::next_bulk(most, waiting, began.elapsed());
                progress.bulk.store(bulk, Ordering::Relaxed);
                self.relay(progress, events).await
            };
            let written = written.await;
            written.inspect_err(|error| progress.database_failed(error))?;
            (self.observe)(&progress.tally().counts);
        }
        Ok(())
    }

    fn askers(&self) -> usize {
        self.provider.concurrency() + SPARE_ASKERS
    }

    /// Leases the next voices, those of other askers that wait included; `None` where there are no
    /// more, or the pass has to stop.
    async fn claim<'p>(
        &self,
        progress: &'p Progress,
    ) -> Result<Option<(Batch, UnderWay<'p>)>, StoreError> {
        progress.hungry.fetch_add(1, Ordering::Relaxed);
        // So that the first claim is one for all.
        yield_now().await;
        let claimed = loop {
            let mut changed = pin!(progress.isolation.changed());
            changed.as_mut().enable();
            let mut claims = progress.claims.lock().await;
            match self.claim_next(progress, &mut claims).await {
                Ok(Next::LookUp(batch)) => break Ok(Some((batch, progress.isolation.begin()))),
                Ok(Next::Wait) => {
                    drop(claims);
                    changed.await;
                }
                Ok(Next::Nothing) => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        progress.hungry.fetch_sub(1, Ordering::Relaxed);
        claimed
    }

    async fn claim_next(
        &self,
        progress: &Progress,
        claims: &mut Claims,
    ) -> Result<Next, StoreError> {
        loop {
            if self.has_no_database(progress) {
                return Ok(Next::Nothing);
            }
            let (is_unclear, is_outage) = {
                let tally = progress.tally();
                (!tally.any_answered, tally.looks_like_an_outage())
            };
            if progress.isolation.is_pressing()
                && !is_outage
                && let Some(part) = progress.isolation.pop(is_unclear)
            {
                return Ok(Next::LookUp(part));
            }
            if let Some(batch) = claims.ready.pop_front() {
                return Ok(Next::LookUp(batch));
            }
            let mode = match claims.is_isolated() {
                true => Mode::Isolated,
                false => Mode::Batch,
            };
            let size = self.batch_size(progress, mode);
            let hungry = progress.hungry.load(Ordering::Relaxed);
            let next = claims.cursor.next(size * hungry.clamp(1, BATCHES_AT_ONCE));
            let has_parts = !progress.isolation.is_empty();
            if next.is_none() && is_outage {
                // Of all that was asked about, nothing was answered.
                self.provider.lookups_fail();
            }
            if let Some(halt) = self.reason_to_halt(progress)
                && (next.is_some() || has_parts || halt.is_about_the_key())
            {
                progress.halt(halt);
            }
            let halted = progress.tally().halt.is_some();
            let Some((selection, limit)) = next.filter(|_| !halted && !claims.is_over()) else {
                // Where the pass has to stop, they are given back.
                if let Some(part) = progress.isolation.pop(is_unclear) {
                    return Ok(Next::LookUp(part));
                }
                if !progress.isolation.is_idle() {
                    return Ok(Next::Wait);
                }
                match halted || !self.begin_isolated(progress, claims).await? {
                    true => return Ok(Next::Nothing),
                    false => continue,
                }
            };
            let claimed_at = Instant::now();
            let page = match self.scope.dry_run {
                true => self.store.peek(&selection, limit).await,
                false => self.store.claim(progress.run_id, &selection, limit).await,
            };
            // A database that fails here would fail the other askers in their turn, each after
            // its own patience.
            let page = page.inspect_err(|error| progress.database_failed(error))?;
            let place = claims.cursor.advance(&selection, &page);
            progress.tally().claimed(&page);
            self.meters.reclaimed.inc_by(page.reclaimed);
            claims
                .ready
                .extend(cut(page.voices, size, place, claimed_at, mode));
        }
    }

    /// Goes on with the voices that earlier passes isolated, when all others have been asked about. Returns
    /// whether there are any.
    async fn begin_isolated(
        &self,
        progress: &Progress,
        claims: &mut Claims,
    ) -> Result<bool, StoreError> {
        let isolated = match std::mem::replace(&mut claims.apart, Apart::Nothing) {
            Apart::Nothing => return Ok(false),
            begun @ Apart::Begun { .. } => {
                claims.apart = begun;
                return Ok(false);
            }
            Apart::Known(isolated) => isolated,
            Apart::Unread => {
                let isolated = self.store.isolated(progress.run_id, ISOLATED_AT_ONCE).await;
                isolated.inspect_err(|error| progress.database_failed(error))?
            }
        };
        if isolated.rows.is_empty() {
            return Ok(false);
        }
        let longest = match self.scope.goes_on {
            true => SHORT_ISOLATED_TIME,
            false => ISOLATED_TIME,
        };
        claims.apart = Apart::Begun {
            until: Instant::now() + longest,
            all: isolated.rows.len(),
            new: isolated.new,
        };
        claims.cursor.go_on_with(isolated.rows, isolated.read_at);
        Ok(true)
    }

    /// Asks about each voice of the batch whose id may be asked about: in one go, except for the
    /// kinds that the list is known to leave out.
    async fn look_up(&self, progress: &Progress, batch: &Batch) -> Step {
        let lease_ends = batch.claimed_at + LEASE - LEASE_RESERVE;
        let patience = Patience {
            until: progress
                .deadline
                .map_or(lease_ends, |deadline| deadline.min(lease_ends)),
            stop: self.stop,
        };
        let mut ids = HashSet::with_capacity(batch.voices.len());
        let mut groups: HashMap<Mode, Vec<_>> = HashMap::new();
        for voice in &batch.voices {
            let id = voice.checked_id().ok();
            if let Some(id) = id.filter(|id| ids.insert(id.clone())) {
                let mode = self.mode(progress, batch.mode, voice);
                groups.entry(mode).or_default().push(id);
            }
        }
        let steps = groups.iter().map(async |(mode, ids)| {
            let step = self.provider.step(ids, *mode, patience).await;
            (*mode, step)
        });
        let mut all = Step::default();
        let steps = join_all(steps).await;
        let mut tally = progress.tally();
        for (mode, Step { lookups, failed }) in steps {
            let asked_list = match mode {
                Mode::Batch | Mode::Part => !self.provider.has_no_list(),
                Mode::Single | Mode::OneByOne | Mode::Isolated => false,
            };
            for (id, lookup) in &lookups {
                match lookup {
                    Lookup::Found { voice, listed } => {
                        let unknown = tally.found(voice, *listed, asked_list);
                        self.meters.unknown.inc_by(unknown);
                    }
                    Lookup::Unavailable(trouble) => tally.trouble(trouble, id),
                    Lookup::Missing | Lookup::Rejected(_) => tally.any_answered = true,
                    Lookup::Unanswerable(_) => {}
                }
            }
            all.lookups.extend(lookups);
            all.failed.extend(failed);
        }
        tally.not_asked(batch, &all);
        all
    }

    /// How to ask about one of a batch.
    fn mode(&self, progress: &Progress, batch: Mode, voice: &Claimed) -> Mode {
        let is_unlisted = |kind: &String| progress.unlisted.contains(kind);
        match (batch, self.strategy) {
            (Mode::Batch, _) if voice.is_isolated => Mode::Isolated,
            (Mode::Batch, Strategy::Single) => Mode::Single,
            (Mode::Batch, Strategy::Auto) if voice.kind.as_ref().is_some_and(is_unlisted) => {
                Mode::Single
            }
            (Mode::Batch, Strategy::Auto | Strategy::Batch)
            | (Mode::Part | Mode::Single | Mode::OneByOne | Mode::Isolated, _) => batch,
        }
    }

    /// Says what each answer means for its row.
    fn judge(&self, progress: &Progress, batch: &Batch, lookups: Lookups) -> Judged {
        let held = batch.claimed_at.elapsed();
        let mut judged = Judged {
            transitions: Vec::with_capacity(batch.voices.len()),
            notes: Vec::new(),
            claimed_at: batch.claimed_at,
        };
        let (mut answered, mut missing) = (0, 0);
        let mut completion_times = Vec::new();
        // Where nothing was found, it is our requests that are wrong, or the provider, and no voice.
        let found_any = progress.tally().fuse.found_any()
            || lookups
                .values()
                .any(|lookup| matches!(lookup, Lookup::Found { .. }));
        for claimed in &batch.voices {
            let age = claimed.age.created + held;
            let counted = claimed.age.counted(self.rules.age_from) + held;
            let seen = match claimed.checked_id() {
                Err(invalid) => {
                    self.meters.set_aside(Reason::ProviderId);
                    Seen::SetAside(invalid.to_string())
                }
                Ok(provider_id) => match lookups.get(&provider_id) {
                    Some(Lookup::Found { voice, .. }) => {
                        answered += 1;
                        match self.judge_one(voice, counted) {
                            Ok(target) => {
                                let lag = claimed.unasked_for + held;
                                self.meters.lag.observe(lag.as_secs_f64());
                                match target {
                                    Target::Completed { .. } => completion_times.push(age),
                                    Target::Failed { .. } => {}
                                }
                                judged.transitions.push(Transition {
                                    row: claimed.row.clone(),
                                    provider_id,
                                    target,
                                });
                                continue;
                            }
                            Err(seen) => seen,
                        }
                    }
                    Some(Lookup::Missing) => {
                        answered += 1;
                        missing += 1;
                        Seen::Missing
                    }
                    Some(Lookup::Rejected(reason)) if found_any => {
                        self.meters.set_aside(Reason::Rejected);
                        Seen::SetAside(format!("the provider rejects its id: {reason}"))
                    }
                    Some(Lookup::Rejected(reason)) => {
                        let trouble = Trouble::new(TroubleKind::Status, reason);
                        progress.tally().trouble(&trouble, &provider_id);
                        Seen::Unavailable(trouble.to_string())
                    }
                    Some(Lookup::Unanswerable(trouble)) => {
                        let reason = trouble.to_string();
                        let times = claimed.unanswered + 1;
                        let seen = Seen::Unanswerable { reason, times };
                        let note = note(claimed.row.clone(), seen, age);
                        let mut tally = progress.tally();
                        let new = claimed.unanswered == 0;
                        judged
                            .notes
                            .extend(tally.unanswerable(note, trouble, &provider_id, new));
                        continue;
                    }
                    Some(Lookup::Unavailable(trouble)) => match batch.mode {
                        Mode::Batch | Mode::Single => Seen::Unavailable(trouble.to_string()),
                        Mode::Part | Mode::OneByOne | Mode::Isolated => {
                            Seen::Suspected(trouble.to_string())
                        }
                    },
                    None => Seen::Unavailable("not asked".to_owned()),
                },
            };
            judged.notes.push(note(claimed.row.clone(), seen, age));
        }
        let mut tally = progress.tally();
        tally.fuse.count(answered, missing);
        for age in completion_times {
            tally.completion_times.add(age);
        }
        drop(tally);
        judged
    }

    fn judge_one(&self, voice: &Voice, age: Duration) -> Result<Target, Seen> {
        match judge(voice, age, self.rules) {
            Verdict::Completed { preview_url } => {
                let room = self.store.preview_room();
                match preview_url
                    .as_deref()
                    .map_or(Ok(()), |url| storable(url, room))
                {
                    Ok(()) => Ok(Target::Completed { preview_url }),
                    Err(unstorable) => {
                        self.meters.set_aside(Reason::Preview);
                        Err(Seen::SetAside(unstorable.to_string()))
                    }
                }
            }
            Verdict::Failed(failure) => Ok(Target::Failed {
                reason: printable(&failure.to_string()),
            }),
            Verdict::Processing(stage) => Err(Seen::Processing {
                kind: printable(voice.kind()),
                stage,
            }),
        }
    }

    /// Makes the transitions of some batches happen, with their events, and notes the rest.
    async fn apply(
        &self,
        progress: &Progress,
        batches: Vec<Judged>,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let (mut transitions, mut notes) = (Vec::new(), Vec::new());
        for judged in batches {
            if judged.claimed_at.elapsed() < LEASE {
                transitions.extend(judged.transitions);
                notes.extend(judged.notes);
                continue;
            }
            // By now another process may have asked about the same voices.
            let voices = judged.transitions.len() + judged.notes.len();
            self.meters.stale.inc_by(voices as u64);
            warn!(
                voices,
                "held for longer than their lease; the answers are dropped"
            );
        }
        let mut events = Vec::new();
        if self.scope.dry_run {
            let moved = transitions.iter().map(|t| t.row.clone()).collect();
            let as_if = Applied {
                moved,
                ..Applied::default()
            };
            progress
                .tally()
                .transitions(&transitions, &as_if, "would be");
        } else {
            // A pass may come by a row twice, as where it was cloned anew: each answer is one of its own.
            let mut rows = HashSet::with_capacity(transitions.len());
            let (first, again) = transitions
                .into_iter()
                .partition(|transition: &Transition| rows.insert(transition.row.clone()));
            events = self.apply_each(progress, first, &mut notes).await?;
            events.extend(self.apply_each(progress, again, &mut notes).await?);
            self.store
                .note(progress.run_id, self.provider.account(), &notes)
                .await?;
        }
        self.count_notes(progress, &notes);
        Ok(events)
    }

    /// Applies in bulk. A bulk that the database refuses is split until the rows that it refuses are alone;
    /// these are set aside.
    async fn apply_each(
        &self,
        progress: &Progress,
        transitions: Vec<Transition>,
        notes: &mut Vec<Note>,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let record = match (self.relay, progress.bus_is_down.load(Ordering::Relaxed)) {
            (None, _) => Record::Nothing,
            (Some(_), true) => Record::ForAnyone,
            (Some(_), false) => Record::ForMe,
        };
        let mut events = Vec::new();
        let mut refused = Vec::new();
        let mut bulks = vec![transitions];
        while let Some(mut bulk) = bulks.pop() {
            match self.store.apply(progress.run_id, &bulk, record).await {
                Ok(applied) => {
                    progress.tally().transitions(&bulk, &applied, "is");
                    events.extend(applied.events);
                }
                Err(error) if !self.store.refuses_rows(&error).await? => return Err(error),
                Err(_) if bulk.len() > 1 => match split(bulk) {
                    Split::Parts(parts) => bulks.extend(parts),
                    Split::OneByOne(rows) => bulks.extend(rows.into_iter().map(|row| vec![row])),
                },
                Err(error) => refused.extend(bulk.pop().map(|one| (one.row, error))),
            }
        }
        let lies_in_rows = progress.tally().refused(&refused);
        for (row, error) in refused {
            let seen = match lies_in_rows {
                true => {
                    self.meters.set_aside(Reason::Refused);
                    Seen::SetAside(printable(&format!(
                        "the database refuses the change: {error}"
                    )))
                }
                false => Seen::Unavailable(printable(&error.to_string())),
            };
            notes.push(note(row, seen, Duration::ZERO));
        }
        Ok(if record == Record::ForMe {
            events
        } else {
            Vec::new()
        })
    }

    fn count_notes(&self, progress: &Progress, notes: &[Note]) {
        let mut tally = progress.tally();
        for Note { row, seen, .. } in notes {
            match seen {
                Seen::Processing { .. } => tally.counts.processing += 1,
                Seen::Missing => tally.counts.missing += 1,
                Seen::SetAside(reason) => tally.set_aside(row, reason),
                Seen::Unavailable(_) | Seen::Unanswerable { .. } | Seen::Suspected(_) => {}
            }
        }
    }

    /// Publishes the events of a batch right after their commit.
    async fn relay(&self, progress: &Progress, events: Vec<OutboxEvent>) -> Result<(), StoreError> {
        match self.relay.filter(|_| !events.is_empty()) {
            Some(relay) => self.publish(progress, relay, &events).await.map(drop),
            None => Ok(()),
        }
    }
}

/// A page in batches of one size, but for the last one.
fn cut(
    mut voices: Vec<Claimed>,
    size: usize,
    mut place: Option<Place>,
    claimed_at: Instant,
    mode: Mode,
) -> Vec<Batch> {
    let mut batches = Vec::with_capacity(voices.len().div_ceil(size));
    while !voices.is_empty() {
        let rest = voices.split_off(size.min(voices.len()));
        let next = place.as_ref().map(|place| place.behind(&voices));
        batches.push(Batch {
            place: std::mem::replace(&mut place, next),
            voices: std::mem::replace(&mut voices, rest),
            claimed_at,
            mode,
        });
    }
    batches
}

/// Those of the voices that are due which are asked about after the others.
fn isolated(agenda: &Agenda) -> Isolated {
    let voices = agenda.voices.iter();
    let rows = voices.filter(|voice| voice.is_isolated && voice.due_in.is_zero());
    Isolated {
        read_at: agenda.read_at,
        rows: rows.map(|voice| voice.row.clone()).collect(),
        new: 0,
    }
}

fn note(row: RowId, seen: Seen, age: Duration) -> Note {
    let again_in = schedule::again_in(age, &seen, fastrand::f64());
    Note {
        row,
        seen,
        again_in,
    }
}
