//! The checks of `voice-sync doctor`: everything that could make `sync-once` fail.

pub mod check;
pub mod database;
pub mod events;
mod postgres;
pub mod provider;
mod sqlite;
