//! Tests against real parts: PostgreSQL, Redis, SQLite files, HTTP, and the built binary.
//! `scripts/test` gets ready whatever they need.

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "some of it is for the other tests")]
mod support;

mod adopt;
mod bad_input;
mod command_line;
mod corpus;
mod daemon;
mod doctor;
mod error_messages;
mod events;
mod fastapi;
mod frugal;
mod hints;
mod migrate;
mod nudge;
mod operator;
mod provider;
mod queue;
mod sdk;
mod secrets;
mod shapes;
mod store;
mod structure;
mod sync_once;
mod terminal;
mod tls;
mod upgrade;
