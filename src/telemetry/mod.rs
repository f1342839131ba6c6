//! Output for people and monitoring: log lines, metrics, a progress bar.

pub mod exposition;
pub mod logs;
pub mod metrics;
#[cfg(target_os = "linux")]
mod process;
pub mod progress_bar;
mod prometheus_text;
