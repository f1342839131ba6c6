//! Voices that the provider fails on, among others: how many of the good ones are done, by whom, and how soon.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::process::Command;
use voice_sync_simulator::{Answer, Delivery, Request};

use crate::contender::{Contender, Lookup, migrate};
use crate::site::{Engine, Site};
use crate::{CONCURRENCY, LATENCY};

/// Passes that follow each other by [`BETWEEN`], as long as good voices are left.
const PASSES: usize = 5;
const BETWEEN: Duration = Duration::from_secs(15);
/// When a run is given up.
const LIMIT: Duration = Duration::from_secs(200);

struct Backlog {
    name: &'static str,
    voices: u64,
    /// What the requests are answered that name a bad voice, by the voice's number; others are good.
    answer: fn(u64) -> Option<Answer>,
}

const BACKLOGS: [Backlog; 4] = [
    Backlog {
        name: "98 good, 2 that answer 500",
        voices: 100,
        answer: |number| (number % 50 == 7).then(internal),
    },
    Backlog {
        name: "1,980 good, 1 % answer 500",
        voices: 2000,
        answer: |number| (number % 100 == 7).then(internal),
    },
    Backlog {
        name: "900 good, 10 % answer 500",
        voices: 1000,
        answer: |number| (number % 10 == 7).then(internal),
    },
    Backlog {
        name: "470 good; hang, a byte a second, HTML, cut JSON, redirect, 80 MB, 1 % each",
        voices: 500,
        answer: |number| match number % 100 {
            7 => Some(Answer::empty(200).after(Duration::from_secs(3600))),
            21 => Some(Answer::json(200, *CUT).sent(Delivery::Slowly(Duration::from_secs(1)))),
            35 => Some(Answer::html(200, "Welcome")),
            49 => Some(Answer::json(200, *CUT)),
            63 => Some(Answer::empty(307).with_header("location", "/elsewhere")),
            77 => Some(Answer::json(200, vec![b' '; 80_000_000])),
            _ => None,
        },
    },
];

const CUT: &[u8; 29] = br#"{"voices": [{"voice_id": "sim"#;

fn internal() -> Answer {
    Answer::error(500, "internal_server_error", "oops")
}

/// How many good voices a run left, and how long it took; `None` if it was given up.
struct Run {
    left: u64,
    took: Option<Duration>,
}

impl Backlog {
    fn is_bad(&self, id: &str) -> Option<Answer> {
        let number = id.strip_prefix("sim-ready-")?.parse().ok()?;
        (self.answer)(number)
    }

    async fn site(&'static self) -> anyhow::Result<Site> {
        let site = Site::new(Engine::Postgres, self.voices, LATENCY).await?;
        site.provider
            .script(|request: &Request| request.voice_ids.iter().find_map(|id| self.is_bad(id)));
        Ok(site)
    }

    fn good(&self) -> u64 {
        let good = (1..=self.voices).filter(|number| (self.answer)(*number).is_none());
        good.count() as u64
    }

    async fn run(&self, site: &Site, contender: Contender) -> anyhow::Result<Run> {
        let mut command: Command = contender.prepared(site, CONCURRENCY)?.into();
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let began = Instant::now();
        let ended = tokio::time::timeout(LIMIT, command.spawn()?.wait()).await;
        let took = ended.is_ok().then(|| began.elapsed());
        let done = site.completed().await?;
        ensure!(done <= self.good(), "a bad voice was completed");
        Ok(Run {
            left: self.good() - done,
            took,
        })
    }
}

pub(crate) async fn show() -> anyhow::Result<()> {
    println!("bad voices among others; PostgreSQL, latency {LATENCY:?}, {CONCURRENCY} at once:");
    for backlog in &BACKLOGS {
        let good = backlog.good();
        println!("{}:", backlog.name);
        let site = backlog.site().await?;
        migrate(&site).await?;
        for pass in 1..=PASSES {
            let run = backlog
                .run(&site, Contender::VoiceSync(Lookup::Batch))
                .await?;
            tell(&format!("voice-sync, pass {pass}"), good, &run);
            let counts = site.provider.counts();
            println!(
                "    {} list and {} single requests so far",
                counts.list, counts.single
            );
            if run.left == 0 {
                break;
            }
            tokio::time::sleep(BETWEEN).await;
        }
        site.close().await?;
        let site = backlog.site().await?;
        let run = backlog.run(&site, Contender::Sequential).await?;
        tell("one voice after the other", good, &run);
        site.close().await?;
    }
    Ok(())
}

fn tell(who: &str, good: u64, run: &Run) {
    let took = match run.took {
        Some(took) => format!("{:.1} s", took.as_secs_f64()),
        None => format!("given up after {} s", LIMIT.as_secs()),
    };
    println!(
        "  {who:<28} {} of {good} good voices done, {took}",
        good - run.left
    );
}
