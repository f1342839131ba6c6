//! What production does to voice-sync: crashes, rivals, a bad provider, a database and an event bus
//! that come and go. `docs/explanation/reliability.md` says what each scenario has to show.
//!
//! Budgets are small here, so that they run with every change. `scripts/chaos` gives the full ones:
//! `VOICE_SYNC_CHAOS=full` chooses them, `VOICE_SYNC_TEST_SEED` repeats a run.

mod bus;
#[cfg(target_os = "linux")]
mod clock;
mod crashes;
mod daemon;
mod database;
mod model;
mod nudges;
mod overload;
mod provider;
mod proxy;
mod rivals;
mod scene;
mod shared_fate;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "some of it is for the other tests")]
mod support;
mod weeks;

use std::env;

/// One number for each change, another for `scripts/chaos`.
fn budget(small: u64, full: u64) -> u64 {
    if is_full() { full } else { small }
}

fn is_full() -> bool {
    match env::var("VOICE_SYNC_CHAOS").as_deref() {
        Ok("full") => true,
        Ok(other) => panic!("VOICE_SYNC_CHAOS is \"full\" or not set; it is {other:?}"),
        Err(_) => false,
    }
}

/// Dice whose seed is printed, and taken from `VOICE_SYNC_TEST_SEED` to repeat a run.
fn rng() -> fastrand::Rng {
    let seed = env::var("VOICE_SYNC_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("VOICE_SYNC_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
