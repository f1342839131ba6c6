//! What a request budget is spent on, simulated: `cargo bench --bench schedule`.
//!
//! Voices come at random and are ready after times of five shapes. Schedules ask about them in requests of at most a
//! hundred: at fixed intervals, after a tenth of a voice's age, and as the daemon does with a request budget. Beside them
//! stands the best that was possible with as many requests as the daemon sent, for someone who knew all times. There is
//! no clock in it: a seed gives the same figures on any machine.
//! `-- --svg PATH` draws them as well.

mod plot;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use voice_sync::core::quantiles::Quantiles;
use voice_sync::core::schedule::{Candidate, Chance, again_in, choose};
use voice_sync::core::survival::Survival;
use voice_sync::core::transition::Seen;
use voice_sync::core::verdict::Stage;

use self::plot::{Point, SCHEDULES, svg};

const SEED: u64 = 7;
const VOICES: usize = 6000;
/// Seconds in which they come.
const ARRIVALS: f64 = 1800.0;
const ROOM: usize = 100;
/// Seconds from one request of the budget to the next.
const SPACING: f64 = 1.0;
/// Seconds from one lookup of a voice to the next, on a fixed schedule.
const FIXED: f64 = 5.0;
const KIND: &str = "cloned";
/// What is looked up within this time is looked up often.
const SOON: f64 = 30.0;
const LEARN_AGAIN: f64 = 60.0;

#[derive(Clone, Copy)]
struct Voice {
    came: f64,
    ready: f64,
}

struct Outcome {
    lags: Vec<f64>,
    requests: usize,
}

/// A voice that is not known to be ready.
struct Waiting {
    voice: Voice,
    asked: Option<f64>,
}

fn shapes(rng: &mut fastrand::Rng) -> Vec<(&'static str, Vec<Voice>)> {
    let exponential = |rng: &mut fastrand::Rng, mean: f64| -mean * (1.0 - rng.f64()).ln();
    let mut voices = |takes: &dyn Fn(&mut fastrand::Rng, f64) -> f64| {
        let mut voices: Vec<_> = (0..VOICES)
            .map(|_| {
                let came = rng.f64() * ARRIVALS;
                let ready = came + takes(rng, came);
                Voice { came, ready }
            })
            .collect();
        voices.sort_by(|one, other| one.came.total_cmp(&other.came));
        voices
    };
    vec![
        (
            "uniform, 5 to 90 s",
            voices(&|rng, _| 5.0 + 85.0 * rng.f64()),
        ),
        (
            "exponential, mean 40 s",
            voices(&|rng, _| exponential(rng, 40.0)),
        ),
        (
            "bimodal, 10 s and 300 s",
            voices(&|rng, _| match rng.bool() {
                true => 8.0 + 4.0 * rng.f64(),
                false => 280.0 + 40.0 * rng.f64(),
            }),
        ),
        (
            "heavy tail, median 20 s",
            voices(&|rng, _| (20.0 * (1.0 / (1.0 - rng.f64()) - 1.0)).min(7200.0)),
        ),
        (
            "40 s, later 400 s",
            voices(&|rng, came| exponential(rng, if came < ARRIVALS / 2.0 { 40.0 } else { 400.0 })),
        ),
    ]
}

/// Lets time pass. `ask` chooses whom to ask about: how many requests that is, and which places.
fn simulate(
    voices: &[Voice],
    mut ask: impl FnMut(f64, &[Waiting], &[f64]) -> (usize, Vec<usize>),
) -> Outcome {
    let mut coming: VecDeque<Voice> = voices.iter().copied().collect();
    let mut waiting: Vec<Waiting> = Vec::new();
    let (mut lags, mut took, mut requests, mut now) = (Vec::new(), Vec::new(), 0, 0.0);
    while lags.len() < voices.len() {
        now += SPACING;
        while let Some(voice) = coming.pop_front_if(|voice| voice.came <= now) {
            waiting.push(Waiting { voice, asked: None });
        }
        let (sent, mut chosen) = ask(now, &waiting, &took);
        requests += sent;
        chosen.sort_unstable();
        for place in chosen.into_iter().rev() {
            let Waiting { voice, asked } = &mut waiting[place];
            *asked = Some(now);
            if voice.ready <= now {
                lags.push(now - voice.ready);
                took.push(now - voice.came);
                waiting.swap_remove(place);
            }
        }
    }
    Outcome { lags, requests }
}

/// When a voice is due that was asked about at this age, without jitter.
fn interval(age: f64) -> f64 {
    const NO_JITTER: f64 = 0.5;
    let seen = Seen::Processing {
        kind: KIND.to_owned(),
        stage: Stage::Preparing,
    };
    again_in(Duration::from_secs_f64(age), &seen, NO_JITTER).as_secs_f64()
}

/// Voices are due after a time by their age; a request that is not full is topped up with those that are due next.
fn by_age(after: fn(f64) -> f64) -> impl FnMut(f64, &[Waiting], &[f64]) -> (usize, Vec<usize>) {
    move |now, waiting, _| {
        let due_in = |waiting: &Waiting| {
            let due = |asked: f64| asked + after(asked - waiting.voice.came) - now;
            waiting.asked.map_or(f64::NEG_INFINITY, due)
        };
        let due = waiting.iter().filter(|waiting| due_in(waiting) <= 0.0);
        let requests = due.count().div_ceil(ROOM);
        let mut places: Vec<_> = (0..waiting.len()).collect();
        places.sort_by(|one, other| due_in(&waiting[*one]).total_cmp(&due_in(&waiting[*other])));
        places.truncate(requests * ROOM);
        (requests, places)
    }
}

/// One request at a time, as the daemon chooses it by what it learned.
fn by_budget() -> impl FnMut(f64, &[Waiting], &[f64]) -> (usize, Vec<usize>) {
    let (mut survival, mut learned_at) = (Survival::default(), 0.0);
    move |now, waiting, took| {
        if now >= learned_at + LEARN_AGAIN {
            let mut times = Quantiles::default();
            for seconds in took {
                times.add(Duration::from_secs_f64(*seconds));
            }
            survival = Survival::new(BTreeMap::from([(KIND.to_owned(), times)]));
            learned_at = now;
        }
        let candidate = |waiting: &Waiting| {
            let Some(asked) = waiting.asked else {
                return Candidate::New;
            };
            let span = |seconds: f64| Duration::from_secs_f64(seconds.max(0.0));
            let (age, ago) = (now - waiting.voice.came, now - asked);
            let after = interval(asked - waiting.voice.came);
            let chance = Chance {
                likelihood: survival.likelihood(Some(KIND), span(age), span(ago)),
                is_due: ago >= after,
            };
            match after < SOON {
                true => Candidate::Soon(chance),
                false => Candidate::Seldom(chance),
            }
        };
        let candidates: Vec<_> = waiting.iter().map(candidate).collect();
        let chosen = choose(&candidates, ROOM);
        (usize::from(!chosen.is_empty()), chosen)
    }
}

/// The least sum of lags with so many requests, for someone who knows when each voice is ready: requests are sent when a
/// voice is, and each finds all that were ready since the one before. (Whether more than a hundred were is ignored.)
///
/// Cutting a sorted list into parts at the least cost, where the costs are of Monge's kind: by divide and conquer, layer
/// by layer.
fn hindsight(voices: &[Voice], requests: usize) -> Vec<f64> {
    let mut ready: Vec<_> = voices.iter().map(|voice| voice.ready).collect();
    ready.sort_by(f64::total_cmp);
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(ready.iter().scan(0.0, |sum, ready| {
            *sum += ready;
            Some(*sum)
        }))
        .collect();
    // Of the voices from one place to another, which is not one of them.
    let cost =
        |from: usize, to: usize| ready[to - 1] * (to - from) as f64 - (sums[to] - sums[from]);
    let n = ready.len();
    let mut least = vec![f64::INFINITY; n + 1];
    least[0] = 0.0;
    let mut cuts = Vec::new();
    for _ in 0..requests.min(n) {
        let (mut next, mut cut) = (vec![f64::INFINITY; n + 1], vec![0u32; n + 1]);
        next[0] = 0.0;
        let mut ranges = vec![(1, n, 0, n - 1)];
        while let Some((from, to, low, high)) = ranges.pop() {
            if from > to {
                continue;
            }
            let middle = usize::midpoint(from, to);
            let starts = least.iter().enumerate().take(high.min(middle - 1) + 1);
            for (start, before) in starts.skip(low) {
                let total = before + cost(start, middle);
                if total < next[middle] {
                    (next[middle], cut[middle]) = (total, start as u32);
                }
            }
            let start = cut[middle] as usize;
            ranges.push((from, middle - 1, low, start));
            ranges.push((middle + 1, to, start, high));
        }
        least = next;
        cuts.push(cut);
    }
    let (mut lags, mut to) = (Vec::new(), n);
    for cut in cuts.iter().rev() {
        let from = cut[to] as usize;
        lags.extend(ready[from..to].iter().map(|one| ready[to - 1] - one));
        to = from;
        if to == 0 {
            break;
        }
    }
    lags
}

fn print(shape: &str, schedule: &str, Outcome { mut lags, requests }: Outcome) -> Point {
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share).round() as usize];
    let mean_lag = lags.iter().sum::<f64>() / lags.len() as f64;
    let requests = requests as f64 / VOICES as f64;
    println!(
        "| {shape} | {schedule} | {:.2} s | {mean_lag:.2} s | {:.2} s | {requests:.3} |",
        at(0.5),
        at(0.99),
    );
    Point { mean_lag, requests }
}

fn main() -> std::io::Result<()> {
    println!("| ready after | schedule | lag p50 | mean | p99 | requests a voice |");
    println!("|---|---|---|---|---|---|");
    let mut shown = Vec::new();
    for (shape, voices) in shapes(&mut fastrand::Rng::with_seed(SEED)) {
        let fixed = simulate(&voices, by_age(|_| FIXED));
        let by_age = simulate(&voices, by_age(interval));
        let budget = simulate(&voices, by_budget());
        let requests = budget.requests;
        let lags = hindsight(&voices, requests);
        let outcomes = [fixed, by_age, budget, Outcome { lags, requests }];
        let mut schedules = SCHEDULES.into_iter();
        let points = outcomes.map(|outcome| {
            let schedule = schedules.next().expect("a name for each");
            print(shape, schedule, outcome)
        });
        shown.push((shape, points));
    }
    let arguments: Vec<_> = std::env::args().collect();
    if let Some(place) = arguments.iter().position(|argument| argument == "--svg")
        && let Some(path) = arguments.get(place + 1)
    {
        std::fs::write(path, svg(&shown))?;
    }
    Ok(())
}
