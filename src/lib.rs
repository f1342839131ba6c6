//! voice-sync finishes what an application began: it finds the voices that still stand as
//! `processing` in the application's own table, asks ElevenLabs how far each is, moves the row to
//! `completed` or `failed`, and tells the application's event bus.
//!
//! # Architecture
//!
//! ```text
//! main ── cli ── daemon ── pass ──┬── provider   (HTTP: lookups, errors by what the caller does)
//!          │        │             ├── store      (SQL: PostgreSQL and SQLite)
//!          │        │             └── events     (relay: outbox → Redis)
//!          └────────┴── status    (what operators are shown: text, JSON, a page)
//!
//! pure, no IO, no clock:  voice · verdict · missing · schedule · report · finding · exit · pass::cursor
//!                         retry · budget · breaker · limit · standing · backlog · sketch · status · words
//! ```
//!
//! A [`pass`] is five named steps, of which all but the third talk to something:
//!
//! 1. **claim** takes the next voices in processing and leases them ([`store::Store::claim`]);
//! 2. **look up** asks the provider ([`provider::Provider::look_up`]), with no transaction open;
//! 3. **judge** says what an answer means for its row ([`verdict::judge`]);
//! 4. **apply** moves rows that are still as they were asked about, and records their events, in one
//!    transaction ([`store::Store::apply`]);
//! 5. **relay** publishes what committed ([`events::relay`]).
//!
//! Everything that decides is a pure function, tested as one; everything that talks is thin. Only [`pass`]
//! sees HTTP and SQL both. The [`daemon`] is passes with sleep in between. What happens is counted in
//! [`meters`] by who does it, and shown by [`metrics`]. `docs/architecture.md` in the repository has the same
//! with a picture, and says where to change what.

pub mod backlog;
pub mod breaker;
pub mod budget;
pub mod cli;
pub mod daemon;
pub mod deadline;
pub mod events;
pub mod exit;
mod failpoint;
pub mod finding;
pub mod isolate;
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
