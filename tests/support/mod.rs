//! What the tests stand on: an application's database, a simulator, Redis, and the built binary.

pub(crate) mod app;
pub(crate) mod binary;
pub(crate) mod bus;
pub(crate) mod daemon;
pub(crate) mod fates;
pub(crate) mod server;
pub(crate) mod site;

use std::env;

/// A variable that `scripts/with-servers` sets. A test that needs it fails without it: a test that
/// passes by skipping would say nothing.
pub(crate) fn from_scripts(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set: run `scripts/test`, which starts the servers that tests need"
        )
    })
}
