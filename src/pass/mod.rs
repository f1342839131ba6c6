//! One pass over the voices in processing: claim → look up → judge → apply → relay.
//!
//! Two kinds of workers share them. Lookup workers claim, look up and judge a batch after the other; there are
//! a few more of them than requests are allowed, so that the provider is kept busy while others claim.
//! Writers apply and relay what is judged. Both do in one statement whatever waits to be done: the busier
//! the database, the fewer statements it gets. No transaction is open and no row is locked while the
//! provider is asked.

mod apply;
mod claim;
mod closing;
mod cursor;
mod isolation;
mod judge;
mod look_up;
mod pace;
mod progress;
mod publishing;
mod queue;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::{join, join_all};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::cursor::{Cursor, Place};
pub(crate) use self::pace::LONGEST_HOLD;
use self::progress::{Apart, Progress};
use crate::events::OutboxEvent;
use crate::events::queue::Queue;
use crate::events::relay::Relay;
use crate::meters::PassMeters;
use crate::provider::Provider;
use crate::provider::lookup::{BATCH, Mode, Strategy};
use crate::report::{Counts, Report};
use crate::schedule;
use crate::store::{
    Agenda, Claimed, Isolated, Memory, Note, Store, StoreError, Transition, Upcoming,
};
use crate::verdict::Rules;
use crate::voice::RowId;

/// Lookup workers beyond the requests that are allowed at once.
const SPARE_WORKERS: usize = 2;
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
/// How long a pass claims voices where others may come due meanwhile, new ones above all.
const POLL_TIME: Duration = Duration::from_secs(3);
/// Part of a limit that is kept for isolated voices, which come after all others.
const ISOLATED_SHARE: f64 = 0.1;
/// Part of the lease that is kept for writing the answers down.
const LEASE_RESERVE: Duration = Duration::from_secs(10);

/// Which voices a pass is about, and how far it goes.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Which voices.
    pub which: Which,
    /// At most so many voices.
    pub limit: Option<u64>,
    /// Nothing is claimed or asked about after this.
    pub until: Option<Instant>,
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
            until,
            dry_run: _,
            goes_on: _,
        } = self.scope;
        let mut cursor = match which {
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
        if isolated.any() {
            // A small limit has room for one now and then.
            let share = limit.map(|limit| limit as f64 * ISOLATED_SHARE + fastrand::f64());
            cursor.reserve(share.map_or(0, |share| share as u64));
        }
        let mut progress = Progress::new(
            Uuid::new_v4(),
            started,
            (self.provider.requests(), self.provider.retries()),
            *until,
            cursor,
            isolated,
            memory.unlisted,
        );
        progress.mass_absence = memory.mass_absence;
        progress.key_works = memory.key_works;
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
        let workers = self.lookup_workers();
        let (judged, to_write) = mpsc::channel(workers);
        let to_write = Mutex::new(to_write);
        let done = CancellationToken::new();
        let asking = join_all((0..workers).map(|_| self.look_up_batches(progress, judged.clone())));
        drop(judged);
        let writing = async {
            let outcomes = join_all((0..WRITERS).map(|_| self.write(progress, &to_write))).await;
            to_write.lock().await.close();
            done.cancel();
            outcomes
        };
        let ((asked, written), synced) =
            join(join(asking, writing), self.sync_state(progress, &done)).await;
        asked.into_iter().chain(written).chain([synced]).collect()
    }

    /// Claims, looks up and judges one batch after the other until there are no more.
    async fn look_up_batches(
        &self,
        progress: &Progress,
        judged: mpsc::Sender<Judged>,
    ) -> Result<(), StoreError> {
        while let Some((mut batch, _under_way)) = self.claim(progress).await? {
            let step = self.look_up(progress, &batch).await;
            // In an outage the walk goes on, and what fails is left to the next pass once many voices wait.
            let is_outage = progress.tally().looks_like_an_outage();
            if !is_outage || !progress.isolation.is_pressing() {
                progress.isolation.push(batch.take_failed(&step.failed));
            }
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

    fn lookup_workers(&self) -> usize {
        self.provider.concurrency() + SPARE_WORKERS
    }

    /// Publishes the events of a batch right after their commit.
    async fn relay(&self, progress: &Progress, events: Vec<OutboxEvent>) -> Result<(), StoreError> {
        match self.relay.filter(|_| !events.is_empty()) {
            Some(relay) => self.publish(progress, relay, &events).await.map(drop),
            None => Ok(()),
        }
    }
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
