//! Decisions and the data that they are based on. Pure: no IO and no clock, times are arguments. Nothing here imports
//! anything from outside this folder.

pub mod backlog;
pub mod backoff;
pub mod bisect;
pub mod event;
pub mod exit;
pub mod format;
pub mod judge;
pub mod lookup;
pub mod missing;
pub mod nudge;
pub mod provider_state;
pub mod quantiles;
pub mod report;
pub mod request_budget;
pub mod schedule;
pub mod survival;
pub mod transition;
pub mod verdict;
pub mod voice;
