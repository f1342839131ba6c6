//! Tests against real parts: PostgreSQL, Redis, SQLite files, HTTP, and the built binary.
//! `scripts/test` gets ready whatever they need.

mod support;

mod store;
