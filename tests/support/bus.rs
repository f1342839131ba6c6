//! Redis, with streams of a test's own.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::StreamRangeReply;
use redis::{AsyncConnectionConfig, AsyncTypedCommands, Client};
use serde_json::Value;
use uuid::Uuid;

use super::from_scripts;

/// A prefix that no other test uses, on the tests' Redis.
pub(crate) struct Bus {
    pub(crate) url: String,
    pub(crate) prefix: String,
    pub(crate) connection: MultiplexedConnection,
}

impl Bus {
    pub(crate) async fn new() -> Self {
        Self::on(from_scripts("VOICE_SYNC_TEST_REDIS_URL")).await
    }

    /// On a server of the test's own.
    pub(crate) async fn on(url: String) -> Self {
        let client = Client::open(url.as_str()).expect("a URL");
        // Reading back all that a long test published takes a while.
        let patient =
            AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let connection = client
            .get_multiplexed_async_connection_with_config(&patient)
            .await
            .expect("Redis answers");
        let prefix = format!("test:{}:", Uuid::new_v4().simple());
        Self {
            url,
            prefix,
            connection,
        }
    }

    /// The events of a type, in their order, with the fields beside them checked.
    pub(crate) async fn events(&self, event_type: &str) -> Vec<Value> {
        let mut connection = self.connection.clone();
        let key = format!("{}{event_type}", self.prefix);
        let reply: StreamRangeReply = connection.xrange_all(key).await.expect("a stream");
        reply
            .ids
            .iter()
            .map(|entry| {
                assert_eq!(entry.get::<String>("type").as_deref(), Some(event_type));
                assert_eq!(entry.map.len(), 2, "an entry has two fields");
                let body: String = entry.get("event").expect("an event");
                serde_json::from_str(&body).expect("JSON")
            })
            .collect()
    }
}
