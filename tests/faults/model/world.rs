//! Three instances, an application and a provider, and what each step does to them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use tempfile::TempDir;
use uuid::Uuid;
use voice_sync::core::transition::{Note, Seen, SetAside, Target, Transition};
use voice_sync::core::verdict::Stage;
use voice_sync::core::voice::{ProviderVoiceId, RowId};
use voice_sync::store::{LeasedEvents, Record, Selection, Store};

use super::instance::{InHand, Instance, half_way};
use super::program::{Program, apply_by_hand, claim_by_hand, foretold};
use super::reference::{Promise, Reference, Violation, preview};
use super::surroundings::Slot;
use super::{Change, Fate, INSTANCES, Remark, SLOTS, Status, Step};
use crate::support::app::{App, Pool, Variant, sqlite_ddl};

const ACCOUNT: Uuid = Uuid::from_u128(7);
/// Rows that a world begins with; the other slots are empty.
const AT_FIRST: usize = 3;
/// Longer than any lease, and than a voice is set aside.
const LONG: u32 = 25 * 60 * 60;

/// A database and connections to it, for one world after the other.
pub(super) struct Site {
    pub(super) app: App,
    stores: Vec<Store>,
}

impl Site {
    pub(super) async fn new() -> Self {
        // Where the system has a place in memory, as a disk would only be waited for.
        let memory = Path::new("/dev/shm");
        let directory = match memory.is_dir() {
            true => TempDir::new_in(memory),
            false => TempDir::new(),
        };
        let directory = directory.expect("a directory");
        let app = App::sqlite_in(directory, Variant::E32, &sqlite_ddl(32)).await;
        let mut stores = Vec::new();
        for _ in 0..INSTANCES {
            stores.push(app.store().await);
        }
        Self { app, stores }
    }

    pub(super) fn pool(&self) -> &SqlitePool {
        match &self.app.pool {
            Pool::Sqlite(pool) => pool,
            Pool::Postgres(_) => unreachable!("the site is on SQLite"),
        }
    }
}

/// A world in the middle of its story.
pub(super) struct World<'a> {
    pub(super) site: &'a Site,
    program: Program,
    pub(super) reference: Reference,
    instances: Vec<Instance>,
    pub(super) slots: Vec<Slot>,
    pub(super) provider: BTreeMap<String, Status>,
    began: Instant,
    /// Time that passed for the database alone.
    pub(super) skipped: Duration,
    /// The last number that made an id.
    pub(super) number: u32,
    /// How many steps were not passed over.
    pub(super) steps: u64,
}

impl<'a> World<'a> {
    pub(super) async fn new(site: &'a Site, program: Program) -> Self {
        let clear =
            "DELETE FROM voices; DELETE FROM voice_sync_voices; DELETE FROM voice_sync_leases;
             DELETE FROM voice_sync_outbox; DELETE FROM voice_sync_batches";
        site.app.execute(clear).await;
        let mut world = Self {
            site,
            program,
            reference: Reference::default(),
            instances: Vec::new(),
            slots: Vec::new(),
            provider: BTreeMap::new(),
            began: Instant::now(),
            skipped: Duration::ZERO,
            number: 0,
            steps: 0,
        };
        for _ in 0..INSTANCES {
            let run_id = world.fresh_id();
            world.instances.push(Instance::new(run_id));
        }
        world.slots.resize_with(SLOTS, Slot::default);
        for slot in 0..AT_FIRST {
            world.change(slot, Change::Insert).await;
        }
        world
    }

    /// Takes these steps, and then lets the first instance alone finish the work: the others have
    /// stopped where they were.
    pub(super) async fn run(&mut self, steps: &[Step]) -> Result<(), Violation> {
        for step in steps {
            if self.step(*step).await? {
                self.steps += 1;
            }
        }
        self.finish().await
    }

    async fn finish(&mut self) -> Result<(), Violation> {
        let (who, fate) = (0, Fate::Done);
        let publish = Step::Publish {
            who,
            limit: usize::MAX,
            fate,
        };
        let mark = Step::Mark { who, fate };
        let take = Step::Take {
            who,
            limit: 100,
            fate,
        };
        let round = [
            Step::TimePasses { seconds: LONG },
            Step::Apply { who, fate },
            Step::Ask { who },
            Step::Apply { who, fate },
            Step::Note {
                who,
                says: Remark::Processing,
            },
            Step::Claim {
                who,
                limit: 100,
                fate,
            },
            Step::Ask { who },
            Step::Apply { who, fate },
            Step::Note {
                who,
                says: Remark::Processing,
            },
            take,
            mark,
            publish,
            mark,
            publish,
        ];
        for turn in 0..10 {
            let before = self.reference.progress();
            for step in round {
                self.step(step).await?;
            }
            // The first may only bring a pass to its end that was in the middle of the table.
            if turn > 0 && self.reference.progress() == before {
                self.look().await?;
                let pending = self.site.stores[who].pending_events(None).await;
                let pending = pending.expect("events are counted").all;
                return self.reference.look_at_the_end(&self.provider, pending);
            }
        }
        Err(Promise::NothingIsLost.broken("there is always something left to do"))
    }

    /// Takes a step, unless it cannot be taken now.
    async fn step(&mut self, step: Step) -> Result<bool, Violation> {
        match step {
            Step::Claim { who, limit, fate } => self.claim(who, limit, fate).await,
            Step::Ask { who } => Ok(self.ask(who)),
            Step::Apply { who, fate } => self.apply(who, fate).await,
            Step::Note { who, says } => self.note(who, says).await,
            Step::Take { who, limit, fate } => self.take(who, limit, fate).await,
            Step::Publish { who, limit, fate } => {
                let half_done = self.program == Program::MarksBeforePublishing;
                self.publish(who, limit, fate, half_done)
            }
            Step::Mark { who, fate } => {
                let half_done = self.program != Program::MarksBeforePublishing;
                self.mark(who, fate, half_done).await
            }
            Step::GiveBack { who } => self.give_back(who).await,
            Step::Crash { who } => {
                let run_id = self.fresh_id();
                let lost = std::mem::replace(&mut self.instances[who], Instance::new(run_id));
                Ok(lost.holds_voices() || !lost.events.is_empty() || lost.after.is_some())
            }
            Step::TimePasses { seconds } => {
                self.skip(seconds).await;
                Ok(true)
            }
            Step::Application { slot, change } => Ok(self.change(slot, change).await),
            Step::Provider {
                slot,
                clone,
                verdict,
            } => Ok(self.provide(slot, clone, verdict)),
        }
    }

    async fn claim(&mut self, who: usize, limit: u32, fate: Fate) -> Result<bool, Violation> {
        if self.instances[who].repeats {
            return Ok(false);
        }
        if self.instances[who].at_the_end {
            if self.instances[who].holds_voices() {
                return Ok(false);
            }
            let run_id = self.fresh_id();
            let events = std::mem::take(&mut self.instances[who].events);
            self.instances[who] = Instance {
                events,
                ..Instance::new(run_id)
            };
        }
        let Instance {
            run_id, ref after, ..
        } = self.instances[who];
        let selection = Selection::Range {
            after: after.clone(),
            up_to: None,
            except: Vec::new(),
        };
        let from = self.now();
        let page = match self.program == Program::IgnoresLeases {
            true => claim_by_hand(self.site.pool(), after.as_ref(), limit)
                .await
                .expect("it is claimed by hand"),
            false => {
                let page = self.site.stores[who].claim(run_id, &selection, limit).await;
                page.expect("the store claims")
            }
        };
        let to = self.now();
        let mut voices = Vec::new();
        for voice in page.voices {
            let provider_id = voice.provider_id.expect("each row has one");
            self.reference
                .claimed(run_id, &voice.row, &provider_id, (from, to))?;
            voices.push((voice.row, provider_id));
        }
        if fate == Fate::Done {
            let instance = &mut self.instances[who];
            let rows = voices.iter().map(|(row, _)| row.clone()).collect();
            instance
                .leases
                .extend(page.lease.map(|lease| (lease, rows)));
            instance.claimed.extend(voices);
            instance.at_the_end = page.last.is_none();
            instance.after = page.last;
        }
        Ok(true)
    }

    /// Asks the provider about all that is claimed.
    fn ask(&mut self, who: usize) -> bool {
        let instance = &mut self.instances[who];
        if instance.repeats {
            return false;
        }
        let claimed = std::mem::take(&mut instance.claimed);
        let asked = !claimed.is_empty();
        for (row, provider_id) in claimed {
            let status = self.provider[&provider_id];
            let target = match status {
                Status::Processing => {
                    instance.unanswered.push((row, provider_id));
                    continue;
                }
                Status::Completed => Target::Completed {
                    preview_url: preview(&provider_id),
                },
                Status::Failed => Target::Failed {
                    reason: "banned".to_owned(),
                },
            };
            self.reference.reported(&provider_id, status);
            instance.answers.push(Transition {
                row,
                provider_id: ProviderVoiceId::parse(&provider_id).expect("an id").into(),
                target,
            });
        }
        asked
    }

    async fn apply(&mut self, who: usize, fate: Fate) -> Result<bool, Violation> {
        let Instance {
            run_id,
            ref answers,
            ..
        } = self.instances[who];
        if answers.is_empty() {
            return Ok(false);
        }
        let answers = answers.clone();
        if self.program == Program::PublishesBeforeTheCommit {
            for answer in &answers {
                self.reference.published(&foretold(answer))?;
            }
        }
        // One of them is as if its Redis were down.
        let record = match who {
            0 | 1 => Record::ForMe,
            _ => Record::ForAnyone,
        };
        let applied = match self.program.care() {
            None => {
                let applied = self.site.stores[who].apply(run_id, &answers, record).await;
                applied.expect("the store applies")
            }
            Some(care) => apply_by_hand(self.site.pool(), care, run_id, &answers, fate)
                .await
                .expect("it is applied by hand"),
        };
        for answer in &answers {
            self.reference.given_back(run_id, &answer.row);
        }
        let moved = self.look().await?;
        let said: BTreeSet<RowId> = applied.moved.iter().cloned().collect();
        let instance = &mut self.instances[who];
        // Who repeats a call is told again of what that had moved.
        instance.moved_before.extend(moved.iter().cloned());
        if !moved.is_subset(&said) || !said.is_subset(&instance.moved_before) {
            let what = format!("{moved:?} moved, and the store says {:?}", applied.moved);
            return Err(Promise::AsReported.broken(what));
        }
        instance.repeats = fate == Fate::ReplyLost;
        if fate == Fate::Done {
            let answers = std::mem::take(&mut instance.answers);
            instance.moved_before.clear();
            if record == Record::ForMe {
                instance.take(applied.events);
            }
            let ended = instance.written(answers.iter().map(|answer| &answer.row));
            let ended = self.site.stores[who].end_leases(&ended).await;
            ended.expect("the store ends leases");
        }
        Ok(true)
    }

    async fn note(&mut self, who: usize, says: Remark) -> Result<bool, Violation> {
        let instance = &mut self.instances[who];
        if instance.unanswered.is_empty() || instance.repeats {
            return Ok(false);
        }
        let rows = std::mem::take(&mut instance.unanswered);
        let run_id = instance.run_id;
        let notes: Vec<_> = rows
            .into_iter()
            .map(|(row, provider_id)| Note {
                row,
                provider_id: Some(provider_id),
                again_in: Duration::ZERO,
                seen: match says {
                    Remark::Processing => Seen::Processing {
                        kind: "cloned".to_owned(),
                        stage: Stage::Preparing,
                    },
                    Remark::Missing => Seen::Missing,
                    Remark::Unavailable => Seen::Unavailable("503".to_owned()),
                    Remark::SetAside => Seen::SetAside(SetAside::Refused("odd".to_owned())),
                },
            })
            .collect();
        let noted = self.site.stores[who].note(run_id, ACCOUNT, &notes).await;
        noted.expect("the store notes");
        for note in &notes {
            self.reference.given_back(run_id, &note.row);
        }
        let ended = self.instances[who].written(notes.iter().map(|note| &note.row));
        let ended = self.site.stores[who].end_leases(&ended).await;
        ended.expect("the store ends leases");
        Ok(true)
    }

    async fn take(&mut self, who: usize, limit: u32, fate: Fate) -> Result<bool, Violation> {
        if self.instances[who].repeats {
            return Ok(false);
        }
        let events = self.site.stores[who].lease_events(limit).await;
        let events = events.expect("the store gives events").events;
        let taken = !events.is_empty();
        if fate == Fate::Done {
            self.instances[who].take(events);
        }
        Ok(taken)
    }

    /// Brings events that are `half_done` or not onto the bus.
    fn publish(
        &mut self,
        who: usize,
        limit: usize,
        fate: Fate,
        half_done: bool,
    ) -> Result<bool, Violation> {
        let events = &mut self.instances[who].events;
        let mut published = BTreeSet::new();
        for in_hand in events
            .iter_mut()
            .filter(|e| e.half_done == half_done)
            .take(limit)
        {
            self.reference.published(&in_hand.event)?;
            published.insert(in_hand.event.id);
        }
        if fate == Fate::Done {
            half_way(events, &published, half_done);
        }
        Ok(!published.is_empty())
    }

    async fn mark(&mut self, who: usize, fate: Fate, half_done: bool) -> Result<bool, Violation> {
        let all = self.program != Program::MarksPartOfABatch;
        let events = self.instances[who].of_batches(half_done, all);
        let ids: BTreeSet<i64> = events.iter().map(|event| event.id).collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let listed: Vec<_> = ids.iter().copied().collect();
        let leased = LeasedEvents::from(events);
        let marked = self.site.stores[who]
            .settle_events(&leased, &listed, &[])
            .await;
        marked.expect("the store marks");
        if fate == Fate::Done {
            half_way(&mut self.instances[who].events, &ids, half_done);
        }
        Ok(true)
    }

    /// Gives up on the events that are not published.
    async fn give_back(&mut self, who: usize) -> Result<bool, Violation> {
        if self.program == Program::MarksBeforePublishing {
            return Ok(false);
        }
        let events = std::mem::take(&mut self.instances[who].events);
        let is_done = |in_hand: &&InHand| in_hand.half_done;
        let published: Vec<_> = events.iter().filter(is_done).map(|e| e.event.id).collect();
        let all: Vec<_> = events.into_iter().map(|in_hand| in_hand.event).collect();
        let leased = LeasedEvents::from(all);
        let settled = self.site.stores[who]
            .settle_events(&leased, &published, &[])
            .await;
        settled.expect("the store settles events");
        Ok(!leased.events.is_empty())
    }

    fn now(&self) -> Duration {
        self.began.elapsed() + self.skipped
    }

    pub(super) fn fresh_id(&mut self) -> Uuid {
        self.number += 1;
        Uuid::from_u128(self.number.into())
    }
}
