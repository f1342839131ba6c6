//! The checks of `voice-sync doctor`: everything that `sync-once` would meet.

pub mod check;
pub mod database;
pub mod events;
mod postgres;
pub mod provider;
mod sqlite;
