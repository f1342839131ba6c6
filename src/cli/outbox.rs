//! `voice-sync outbox`.

use std::time::Duration;

use anyhow::anyhow;
use chrono::Utc;
use clap::{Args, Subcommand};
use serde_json::json;
use tracing::info;

use super::left::{self, Left};
use super::outbox_record::Record;
use super::{FIND_IDS, Options, Output, at, confirm, in_time, open, print, width};
use crate::core::exit::{Exit, Failed};
use crate::core::format::{ago, in_line, moment, number_of};
use crate::status::table;
use crate::store::{
    Access, CommandRun, EventFilter, EventRecord, PURGE, Store, StoreError, is_same_id,
};

/// List the events of transitions, publish them again, or remove them.
#[derive(Debug, Args)]
pub(super) struct Outbox {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List events that wait to be published, newest first.
    #[command(after_help = "\
Examples:
  voice-sync outbox list
  voice-sync outbox list --published --since 1h
  voice-sync outbox list --all 6f1c2b34-5d6e-4f70-8a9b-0c1d2e3f4a5b")]
    List {
        /// Only these events, by their id, or by the row or provider id of their voice.
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        /// List published events instead.
        #[arg(long, conflicts_with = "all")]
        published: bool,
        /// List both.
        #[arg(long)]
        all: bool,
        /// Only transitions within this time.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        since: Option<Duration>,
        /// At most this many.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Publish events again, for consumers that lost them. The next pass does it. They keep their ids, so that a consumer
    /// that has seen them can drop them.
    #[command(after_help = "\
Examples:
  voice-sync outbox resend --since 2h
  voice-sync outbox resend 6f1c2b34-5d6e-4f70-8a9b-0c1d2e3f4a5b")]
    Resend {
        /// These events, by their id, or by the row or provider id of their voice.
        #[arg(value_name = "ID", required_unless_present = "since")]
        ids: Vec<String>,
        /// Events of transitions within this time. Events are kept for a week.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        since: Option<Duration>,
        /// Do not ask for confirmation. Required without a terminal, unless ids are given.
        #[arg(long)]
        yes: bool,
    },
    /// Record the events of voices that were finished without one, for example while there was no event bus. The next pass
    /// publishes them.
    Record(Record),
    /// Remove published events before their week is over; or, with --pending, events that are then never published.
    #[command(after_help = "\
Examples:
  voice-sync outbox purge --older-than 1d
  voice-sync outbox purge --pending --older-than 30d")]
    Purge {
        /// Only these events, by their id, or by the row or provider id of their voice.
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        /// Remove events that wait to be published, instead of published ones.
        #[arg(long)]
        pending: bool,
        /// Only events of transitions that are older.
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
        older_than: Duration,
        /// Do not ask for confirmation. Required without a terminal.
        #[arg(long)]
        yes: bool,
    },
}

impl Outbox {
    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        match self.action {
            Action::List {
                ids,
                published,
                all,
                since,
                limit,
            } => {
                let filter = EventFilter {
                    published: (!all).then_some(published),
                    names: ids,
                    since,
                    older_than: Duration::ZERO,
                };
                list(options, filter, limit).await
            }
            Action::Resend { ids, since, yes } => {
                let filter = EventFilter {
                    published: Some(true),
                    names: ids,
                    since,
                    older_than: Duration::ZERO,
                };
                change(options, filter, Change::Resend, yes).await
            }
            Action::Record(record) => record.run(options).await,
            Action::Purge {
                ids,
                pending,
                older_than,
                yes,
            } => {
                let filter = EventFilter {
                    published: Some(!pending),
                    names: ids,
                    since: None,
                    older_than,
                };
                change(options, filter, Change::Purge, yes).await
            }
        }
    }
}

/// Adds the row ids of voices to the filter: its names may be provider ids, but the outbox contains row ids.
async fn with_rows(store: &Store, filter: EventFilter) -> Result<EventFilter, StoreError> {
    const ROWS: u32 = 100;
    if filter.names.is_empty() {
        return Ok(filter);
    }
    let voices = store.named(&filter.names, ROWS).await?;
    let mut names = filter.names;
    names.extend(voices.into_iter().map(|voice| voice.voice_id));
    Ok(EventFilter { names, ..filter })
}

async fn list(options: &Options, filter: EventFilter, limit: u32) -> Result<Exit, Failed> {
    let (url, names) = (options.database_url()?, options.names()?);
    let opening = open(&url, &names, options.auto_migrate, Access::ReadOnly);
    let store = in_time(&url, opening).await?;
    let (ids, filter) = (filter.names.clone(), with_rows(&store, filter).await);
    let filter = filter.map_err(at(&url))?;
    let events = store.events(&filter, limit).await.map_err(at(&url))?;
    // The ids of rows were added to the names.
    if events.is_empty()
        && !ids.is_empty()
        && filter.names == ids
        && is_unknown(&store, &ids).await.map_err(at(&url))?
    {
        let message = anyhow!("no event, row or provider id is {}", ids.join(", "));
        return Err(Failed::usage(message).with_hint(FIND_IDS));
    }
    let shown = match options.output {
        Output::Json => serde_json::to_string(&events).expect("events always serialise"),
        Output::Text if events.is_empty() => "no events match".to_owned(),
        Output::Text => text(&events, width()),
    };
    print(&shown)?;
    Ok(Exit::Success)
}

/// Whether there is neither a row nor an event with any of these ids.
async fn is_unknown(store: &Store, ids: &[String]) -> Result<bool, StoreError> {
    let filter = EventFilter {
        names: ids.to_vec(),
        ..EventFilter::default()
    };
    let voices = store.named(ids, 1).await?;
    Ok(voices.is_empty() && store.count_events(&filter).await? == 0)
}

fn text(events: &[EventRecord], width: u16) -> String {
    let mut table = table(
        ["event", "type", "voice", "transition (UTC)", "published"],
        width,
    );
    for event in events {
        table.add_row([
            event.event_id.to_string(),
            in_line(&event.event_type),
            in_line(&event.voice_id),
            moment(event.occurred_at),
            publication(event),
        ]);
    }
    table.trim_fmt()
}

/// Whether and when an event was published.
pub(super) fn publication(event: &EventRecord) -> String {
    let now = Utc::now();
    match (event.published_at, event.leased_until) {
        (Some(at), _) => ago(at, now),
        (None, Some(until)) if until > now => "being published".to_owned(),
        (None, _) => "it waits".to_owned(),
    }
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Resend,
    Purge,
}

async fn change(
    options: &Options,
    filter: EventFilter,
    change: Change,
    yes: bool,
) -> Result<Exit, Failed> {
    let (url, names) = (options.database_url()?, options.names()?);
    let opening = open(&url, &names, options.auto_migrate, Access::ReadWrite);
    let store = in_time(&url, opening).await?;
    let left = ids_left(&store, &filter, change).await.map_err(at(&url))?;
    let filter = with_rows(&store, filter).await.map_err(at(&url))?;
    // Publishing events again needs no confirmation if the user named them.
    let is_named = matches!(change, Change::Resend) && !filter.names.is_empty();
    if !yes && !is_named {
        let events = store.count_events(&filter).await.map_err(at(&url))?;
        if events > 0 {
            confirm(&question(change, &filter, events))?;
        }
    }
    let (run, count, events) = match change {
        Change::Resend => {
            let run = CommandRun::begin("outbox resend");
            (run, "resent", store.resend(&run, &filter).await)
        }
        Change::Purge => {
            let run = CommandRun::begin(PURGE);
            (run, "purged", store.purge(&run, &filter).await)
        }
    };
    let events = events.map_err(at(&url))?;
    let run_id = run.run_id;
    info!(%run_id, events, "{}", run.command);
    let number = number_of(events, "event", "events");
    let done = match change {
        _ if events == 0 => "no events match".to_owned(),
        Change::Resend => format!("{number} to be published again by the next pass"),
        Change::Purge if filter.published == Some(false) => {
            format!("{number} removed, and never published")
        }
        Change::Purge => format!("{number} removed"),
    };
    print(&match options.output {
        Output::Json => {
            json!({"run_id": run_id, count: events, "left": left::as_json(&left)}).to_string()
        }
        Output::Text => left::with_left(done, &left),
    })?;
    Ok(match left.is_empty() {
        true => Exit::Success,
        // A named event was left as it is.
        false => Exit::Usage,
    })
}

/// The named ids without an event that can be changed, each with the reason.
async fn ids_left(
    store: &Store,
    filter: &EventFilter,
    change: Change,
) -> Result<Vec<Left>, StoreError> {
    const AT_ONCE: usize = 100;
    let mut left = Vec::new();
    for names in filter.names.chunks(AT_ONCE) {
        let voices = store.named(names, u32::MAX).await?;
        let rows = voices.iter().map(|voice| voice.voice_id.clone());
        let all = EventFilter {
            names: names.iter().cloned().chain(rows).collect(),
            ..EventFilter::default()
        };
        let events = store.events(&all, u32::MAX).await?;
        for name in names {
            let named: Vec<_> = voices.iter().filter(|voice| voice.is_named(name)).collect();
            let is_of_it = |event: &&EventRecord| {
                is_same_id(&event.event_id.to_string(), name)
                    || is_same_id(&event.voice_id, name)
                    || named.iter().any(|voice| voice.voice_id == event.voice_id)
            };
            let events: Vec<_> = events.iter().filter(is_of_it).collect();
            if let Some(why) = why_left(&events, !named.is_empty(), filter, change) {
                left.push((name.clone(), why));
            }
        }
    }
    Ok(left)
}

/// Why none of the events of an id can be changed; `None` if one can.
fn why_left(
    events: &[&EventRecord],
    has_row: bool,
    filter: &EventFilter,
    change: Change,
) -> Option<&'static str> {
    let now = Utc::now();
    let is_published = |event: &&&EventRecord| event.published_at.is_some();
    let is_right = |event: &&&EventRecord| Some(is_published(event)) == filter.published;
    let is_in_time = |event: &&&EventRecord| {
        let age = (now - event.occurred_at).to_std().unwrap_or_default();
        filter.since.is_none_or(|since| age <= since) && age >= filter.older_than
    };
    let is_free = |event: &&&EventRecord| {
        is_published(event) || event.leased_until.is_none_or(|until| until <= now)
    };
    let right: Vec<_> = events
        .iter()
        .copied()
        .filter(|event| is_right(&event))
        .collect();
    Some(match right.is_empty() {
        true if events.is_empty() && !has_row => "no event, row or provider id is this",
        true if events.is_empty() => {
            "no event is kept for it; `voice-sync outbox record` records one"
        }
        true => match (change, filter.published) {
            (Change::Resend, _) => "its event is not published yet: the next pass publishes it",
            (Change::Purge, Some(false)) => "its event is published already",
            (Change::Purge, Some(true) | None) => "its event is not published yet",
        },
        false => {
            let in_time: Vec<_> = right.iter().filter(|event| is_in_time(event)).collect();
            match in_time.iter().any(is_free) {
                true => return None,
                false if in_time.is_empty() => {
                    "the age of its event is not the one that was asked for"
                }
                false => "its event is being published at this moment",
            }
        }
    })
}

fn question(change: Change, filter: &EventFilter, events: u64) -> String {
    let number = number_of(events, "event", "events");
    match (change, filter.published) {
        (Change::Resend, _) => format!("Have {number} published again?"),
        (Change::Purge, Some(false)) => {
            format!("Remove {number} that will then never be published?")
        }
        (Change::Purge, Some(true) | None) => format!("Remove {number}, already published?"),
    }
}
