//! A provider that is down, throttles, refuses the key, or answers what nobody expects.

mod answers;
mod bad_voices;
mod key;
mod outage;
mod poison;
mod rogue;
mod throttling;
