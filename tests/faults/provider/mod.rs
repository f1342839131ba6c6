//! A provider that is down, throttles, refuses the key, or answers what nobody expects.

mod answers;
mod key;
mod outage;
mod poison;
mod rogue;
mod throttling;
