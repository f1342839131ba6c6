//! Reports that the database is unavailable while operations still retry their statements.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Health;
use crate::core::report::Part;
use crate::store::{Store, Suspicion};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A connection that was closed is replaced at once; this is not an outage.
const SHORTEST_OUTAGE: Duration = Duration::from_secs(1);
/// A database that works answers a ping in this time, however slow other statements are.
const PING_TIMEOUT: Duration = Duration::from_millis(1500);

/// Checks once a second, for as long as the store is in use. An outage is detected within 5 s.
pub async fn watch_database(store: &Store, health: &Health) {
    let mut is_away = false;
    loop {
        sleep(LOOK_EVERY).await;
        let away = match store.suspicion() {
            None => None,
            Some(Suspicion::Fails { since, says }) if since.elapsed() >= SHORTEST_OUTAGE => {
                Some((since, says))
            }
            // Too short to be an outage, or possibly a longer one that is not confirmed yet.
            Some(Suspicion::Fails { .. }) => continue,
            Some(Suspicion::Silent { since }) => silent(store, since).await,
        };
        match away {
            Some((since, says)) => {
                is_away = true;
                health.obstructed_since(Part::Database, since, &says);
            }
            None if is_away => {
                is_away = false;
                health.works(Part::Database);
            }
            None => {}
        }
    }
}

async fn silent(store: &Store, since: Instant) -> Option<(Instant, String)> {
    match timeout(PING_TIMEOUT, store.ping()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some((since, error.to_string())),
        Err(_) => Some((since, "no answer".to_owned())),
    }
}
