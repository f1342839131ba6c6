//! voice-sync finishes what an application began: it finds the voices that still stand as
//! `processing` in the application's own table, asks ElevenLabs how far each is, moves the row to
//! `completed` or `failed`, and tells the application's event bus.
//!
//! # Architecture
//!
//! ```text
//! main ── cli ── daemon ── pass ──┬── provider   (HTTP: lookups, errors by what the caller does)
//!                                 ├── store      (SQL: PostgreSQL and SQLite)
//!                                 └── events     (relay: outbox → Redis)
//!         pure, no IO, no clock:  voice · verdict · missing · schedule · report · finding · exit · pass::cursor
//!                                retry · budget · breaker · limit · standing
//!         counted by who does the work: meters; shown: metrics
//! ```
//!
//! A [`pass`] is five steps: claim → look up → judge → apply → relay. Everything that decides is a
//! pure function, tested as one; everything that talks is thin. Only [`pass`] sees HTTP and SQL both.

pub mod backlog;
pub mod breaker;
pub mod budget;
pub mod cli;
pub mod daemon;
pub mod events;
pub mod exit;
mod failpoint;
pub mod finding;
pub mod limit;
pub mod meters;
pub mod metrics;
pub mod missing;
pub mod pass;
pub mod provider;
pub mod report;
pub mod retry;
pub mod schedule;
pub mod settings;
pub mod shutdown;
pub mod sketch;
pub mod standing;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod terminal;
pub mod tls;
pub mod verdict;
pub mod voice;
pub mod words;
