//! The event bus: publishing events to Redis, and the application's queue of waiting voices, on the same Redis.

pub mod backoff;
pub mod publisher;
pub mod queue;
mod server;

pub use server::InvalidRedisUrl;
