//! voice-sync finishes what an application began: it finds the voices that still stand as
//! `processing` in the application's own table, asks ElevenLabs how far each is, moves the row to
//! `completed` or `failed`, and publishes an event.
//!
//! A pass ([`sync`]) is five steps: claim, look up, judge, apply, publish. The [`daemon`] is passes with sleep in
//! between. What decides is pure, and in [`core`]; [`provider`] talks HTTP, [`store`] SQL and [`events`] Redis. Only
//! [`sync`], and [`cli`] and [`doctor`] for looking, see both HTTP and SQL. `docs/explanation/architecture.md` in the
//! repository has the same with a diagram, and says where to change what.

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
