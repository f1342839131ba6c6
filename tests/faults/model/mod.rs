//! Every interleaving of three instances of voice-sync, the application, the provider and crashes
//! that chance comes up with, over the real store, held against a simple model of what must hold.
//!
//! A case is a small world and a list of [`Step`]s, executed one after the other. That is no loss:
//! each step is at most one of the store's transactions, and SQLite runs those one after the other.
//! A step that cannot be done now is passed over, so any part of a list is a list again, and
//! proptest finds the shortest that still breaks a promise.
//!
//! A test that finds nothing shows little unless it would find something: [`Program`] has, besides
//! voice-sync's own way, the classic mistakes, and each of them has to be found.

mod instance;
mod program;
mod reference;
mod surroundings;
mod world;

use std::cell::Cell;
use std::fmt;
use std::thread;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tokio::runtime::Builder;

use self::program::Program;
use self::reference::Promise;
use self::world::{Site, World};
use crate::{budget, is_full, rng};

/// Instances of voice-sync.
const INSTANCES: usize = 3;
/// Places for a row in the application's table.
const SLOTS: usize = 4;
/// Worlds that are explored at the same time. A fixed number, so that a seed means the same
/// everywhere.
const WORLDS: u64 = 4;
/// Steps of a case at most.
const LONGEST: usize = 400;

/// What may happen next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Claim {
        who: usize,
        limit: u32,
        fate: Fate,
    },
    Ask {
        who: usize,
    },
    Apply {
        who: usize,
        fate: Fate,
    },
    Note {
        who: usize,
        says: Remark,
    },
    Take {
        who: usize,
        limit: u32,
        fate: Fate,
    },
    Publish {
        who: usize,
        limit: usize,
        fate: Fate,
    },
    Mark {
        who: usize,
        fate: Fate,
    },
    GiveBack {
        who: usize,
    },
    Crash {
        who: usize,
    },
    TimePasses {
        seconds: u32,
    },
    Application {
        slot: usize,
        change: Change,
    },
    Provider {
        slot: usize,
        clone: Recording,
        verdict: Status,
    },
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// It is done, and the caller is not told.
    ReplyLost,
}

/// What an instance notes of the voices that made no transition.
#[derive(Debug, Clone, Copy)]
enum Remark {
    Processing,
    Missing,
    Unavailable,
    SetAside,
}

/// What the application does with a row.
#[derive(Debug, Clone, Copy)]
enum Change {
    Insert,
    CloneAnew,
    Complete,
    Fail,
    Delete,
}

/// Which of a slot's clones the provider gets on with.
#[derive(Debug, Clone, Copy)]
enum Recording {
    Current,
    /// The one before, which the application has replaced or deleted.
    Former,
}

/// A row's status, and the provider's idea of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Processing,
    Completed,
    Failed,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Self {
        [Self::Processing, Self::Completed, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
            .unwrap_or_else(|| panic!("there is no status {text:?}"))
    }
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 0..INSTANCES;
    let slot = || 0..SLOTS;
    let fate = || prop_oneof![8 => Just(Fate::Done), 1 => Just(Fate::ReplyLost)];
    let remark = prop_oneof![
        Just(Remark::Processing),
        Just(Remark::Missing),
        Just(Remark::Unavailable),
        Just(Remark::SetAside),
    ];
    // Mostly what gives the others something to do.
    let change = prop_oneof![
        3 => Just(Change::Insert),
        6 => Just(Change::CloneAnew),
        1 => Just(Change::Complete),
        1 => Just(Change::Fail),
        1 => Just(Change::Delete),
    ];
    let recording = prop_oneof![3 => Just(Recording::Current), 1 => Just(Recording::Former)];
    let verdict = prop_oneof![Just(Status::Completed), Just(Status::Failed)];
    prop_oneof![
        6 => (who(), 1..=3_u32, fate()).prop_map(|(who, limit, fate)| Step::Claim { who, limit, fate }),
        6 => who().prop_map(|who| Step::Ask { who }),
        6 => (who(), fate()).prop_map(|(who, fate)| Step::Apply { who, fate }),
        4 => (who(), remark).prop_map(|(who, says)| Step::Note { who, says }),
        2 => (who(), 1..=3_u32, fate()).prop_map(|(who, limit, fate)| Step::Take { who, limit, fate }),
        4 => (who(), 1..=3_usize, fate())
            .prop_map(|(who, limit, fate)| Step::Publish { who, limit, fate }),
        4 => (who(), fate()).prop_map(|(who, fate)| Step::Mark { who, fate }),
        1 => who().prop_map(|who| Step::GiveBack { who }),
        2 => who().prop_map(|who| Step::Crash { who }),
        // Too little for any lease; enough for an event's; enough for a voice's.
        2 => prop_oneof![Just(5), Just(16), Just(61)].prop_map(|seconds| Step::TimePasses { seconds }),
        10 => (slot(), change).prop_map(|(slot, change)| Step::Application { slot, change }),
        6 => (slot(), recording, verdict)
            .prop_map(|(slot, clone, verdict)| Step::Provider { slot, clone, verdict }),
    ]
}

/// How far an exploration came.
struct Explored {
    cases: u64,
    /// Those that were not passed over.
    steps: u64,
    broken: Option<Broken>,
}

/// The shortest way found to a broken promise.
struct Broken {
    reason: String,
    steps: Vec<Step>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        self.steps
            .iter()
            .try_for_each(|step| write!(f, "\n  {step:?}"))
    }
}

/// Runs cases until a promise is broken or `wanted` steps are done.
fn explore(program: Program, seed: u64, wanted: u64) -> Explored {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let site = runtime.block_on(Site::new());
    let config = Config {
        cases: 5,
        failure_persistence: None,
        max_shrink_iters: u32::try_from(budget(100, 2000)).expect("few"),
        ..Config::default()
    };
    let mut rng = fastrand::Rng::with_seed(seed);
    // Without the runs that make a failure shorter.
    let (cases, steps, failed) = (Cell::new(0), Cell::new(0), Cell::new(false));
    let mut broken = None;
    while broken.is_none() && steps.get() < wanted {
        // A runner is used up when its cases are.
        let mut bytes = [0; 16];
        rng.fill(&mut bytes);
        let rng = TestRng::from_seed(RngAlgorithm::XorShift, &bytes);
        let mut runner = TestRunner::new_with_rng(config.clone(), rng);
        let outcome = runner.run(&vec(step(), 1..=LONGEST), |case| {
            runtime.block_on(async {
                let mut world = World::new(&site, program).await;
                let outcome = world.run(&case).await;
                if !failed.get() {
                    cases.set(cases.get() + 1);
                    steps.set(steps.get() + world.steps);
                }
                failed.set(failed.get() || outcome.is_err());
                outcome.map_err(|violation| TestCaseError::fail(violation.to_string()))
            })
        });
        broken = match outcome {
            Ok(()) => None,
            Err(TestError::Fail(reason, steps)) => {
                let found = Broken {
                    reason: reason.message().to_owned(),
                    steps,
                };
                Some(runtime.block_on(without_detours(&site, program, found)))
            }
            Err(TestError::Abort(reason)) => panic!("proptest gave up: {reason}"),
        };
    }
    Explored {
        cases: cases.get(),
        steps: steps.get(),
        broken,
    }
}

/// Leaves out what proptest, which tries each step once and from the front, has left in.
async fn without_detours(site: &Site, program: Program, mut found: Broken) -> Broken {
    let mut at = match is_full() {
        true => found.steps.len(),
        false => 0,
    };
    while at > 0 {
        at -= 1;
        let mut fewer = found.steps.clone();
        fewer.remove(at);
        if let Err(violation) = World::new(site, program).await.run(&fewer).await {
            found = Broken {
                reason: violation.to_string(),
                steps: fewer,
            };
            at = found.steps.len();
        }
    }
    found
}

/// Explores [`WORLDS`] at once, and wants nothing to be found.
fn keeps_its_promises(program: Program, wanted: u64) {
    let mut rng = crate::rng();
    let began = Instant::now();
    let seeds: Vec<_> = (0..WORLDS).map(|_| rng.u64(..)).collect();
    let explored: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = seeds
            .into_iter()
            .map(|seed| scope.spawn(move || explore(program, seed, wanted.div_ceil(WORLDS))))
            .collect();
        running
            .into_iter()
            .map(|world| world.join().expect("a world ends"))
            .collect()
    });
    println!(
        "{program:?}: {} steps in {} cases took {:.1} s",
        explored.iter().map(|world| world.steps).sum::<u64>(),
        explored.iter().map(|world| world.cases).sum::<u64>(),
        began.elapsed().as_secs_f64(),
    );
    if let Some(broken) = explored.into_iter().find_map(|world| world.broken) {
        panic!("{broken}");
    }
}

/// Wants one of these promises to be broken by a program that has a mistake. Chance finds each of
/// them within a few dozen cases; the bound is there to end a test that is blind.
fn is_found(program: Program, promises: &[Promise]) {
    let explored = explore(program, rng().u64(..), 200_000);
    let broken = explored
        .broken
        .unwrap_or_else(|| panic!("{program:?} was not found in {} cases", explored.cases));
    println!(
        "{program:?} was found after {} cases, {} steps: {broken}",
        explored.cases, explored.steps
    );
    assert!(
        promises
            .iter()
            .any(|promise| broken.reason.starts_with(promise.as_str())),
        "it broke another promise than it should"
    );
}

#[test]
fn store_keeps_its_promises_under_random_interleavings() {
    keeps_its_promises(Program::Sound, budget(50_000, 1_000_000));
}

/// Shows that the broken programs, which derive from this one, are detected for their mistakes and not for being
/// written by hand.
#[test]
fn sound_program_written_by_hand_keeps_the_promises() {
    keeps_its_promises(Program::ByHand, 5000);
}

#[test]
fn detects_a_rescue_that_overwrites_a_finished_row() {
    // Where the application had failed the row itself, the event of failing it again has no transition behind it.
    is_found(
        Program::OverwritesFinishedRows,
        &[
            Promise::ApplicationWins,
            Promise::HappensOnce,
            Promise::EventIsCommitted,
        ],
    );
}

#[test]
fn detects_a_transition_that_ignores_the_provider_id() {
    is_found(Program::ForgetsTheProviderId, &[Promise::AsReported]);
}

#[test]
fn detects_an_event_published_before_its_commit() {
    is_found(
        Program::PublishesBeforeTheCommit,
        &[Promise::EventIsCommitted],
    );
}

#[test]
fn detects_an_event_recorded_in_a_separate_transaction() {
    is_found(
        Program::RecordsInASecondTransaction,
        &[Promise::EventIsCommitted],
    );
}

#[test]
fn detects_an_event_marked_before_it_is_published() {
    is_found(Program::MarksBeforePublishing, &[Promise::NothingIsLost]);
}

#[test]
fn detects_a_batch_marked_before_all_events_are_published() {
    is_found(Program::MarksPartOfABatch, &[Promise::NothingIsLost]);
}

#[test]
fn detects_a_claim_that_ignores_leases() {
    is_found(Program::IgnoresLeases, &[Promise::LeasesHold]);
}
