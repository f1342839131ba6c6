//! The state of the provider as this process sees it. Pure: times and random numbers are arguments.

pub mod backoff;
pub mod breaker;
pub mod concurrency_limit;
pub mod retry_budget;
