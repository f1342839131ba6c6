//! voice-sync finishes voices that an application has cloned with ElevenLabs: it finds the voices that are `processing`
//! in the application's own table, looks them up, moves each row to `completed` or `failed`, and publishes an event.
//!
//! A pass ([`sync`]) has five steps: claim, look up, judge, apply, publish. The [`daemon`] repeats passes and sleeps in
//! between. Decisions are pure and in [`core`]; [`provider`] contains the HTTP, [`store`] the SQL and [`events`] Redis.
//! Only [`sync`], [`cli`] and [`doctor`] use both HTTP and SQL. `docs/explanation/architecture.md` in the repository
//! has a diagram, and describes where to make which change.

pub mod cli;
pub mod core;
pub mod daemon;
pub mod deadline;
pub mod doctor;
pub mod events;
mod failpoint;
pub mod provider;
pub mod status;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod tls;
