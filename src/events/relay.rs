//! Publishing: from the outbox to Redis.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value};
use tokio::sync::Mutex;
use url::Url;
use uuid::{Uuid, uuid};

use super::{EventType, OutboxEvent};
use crate::failpoint;

/// Most events in one round trip.
pub const BATCH: usize = 500;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `XADD <prefix><type> MAXLEN ~ <maxlen> * event <json> type <type>`.
    Stream {
        /// Entries that a stream keeps at least.
        maxlen: u64,
    },
    /// `PUBLISH <prefix><type> <json>`.
    PubSub,
}

/// A connection to the event bus, made when there is something to publish.
pub struct Relay {
    client: Client,
    kind: Kind,
    prefix: String,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Why a URL is not one of Redis. It is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRedisUrl {
    /// Scheme, host or database number are wrong.
    #[error(
        "it is not a Redis URL; an example is redis://user:password@host:6379/0, where 0 is the \
         number of the database (rediss:// for TLS)"
    )]
    NotRedis,
    /// A parameter whose meaning could be lost.
    #[error("its parameter {0:?} is not understood; remove it")]
    Parameter(String),
}

/// Some events of a batch did not get out.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct NotPublished {
    /// Outbox ids of those that did.
    pub published: Vec<i64>,
    /// Why the others did not.
    pub reason: String,
}

impl Relay {
    /// A relay to the Redis at `url`. Nothing is connected yet.
    pub fn new(url: &str, kind: Kind, prefix: String) -> Result<Self, InvalidRedisUrl> {
        let parsed = Url::parse(url).map_err(|_| InvalidRedisUrl::NotRedis)?;
        if let Some((name, _)) = parsed.query_pairs().find(|(name, _)| name != "protocol") {
            return Err(InvalidRedisUrl::Parameter(name.into_owned()));
        }
        Ok(Self {
            client: Client::open(url).map_err(|_| InvalidRedisUrl::NotRedis)?,
            kind,
            prefix,
            connection: Mutex::new(None),
        })
    }

    /// Which bus this is, without telling its password: a digest of its address and the names on it.
    pub fn bus(&self) -> Uuid {
        const NAMESPACE: Uuid = uuid!("3f1d7f35-2a0e-4c55-8f3c-7e0c6a1b9d42");
        let info = self.client.get_connection_info();
        let database = info.redis_settings().db();
        let name = format!("{}\n{database}\n{}", info.addr(), self.prefix);
        Uuid::new_v5(&NAMESPACE, name.as_bytes())
    }

    /// Publishes events, at most [`BATCH`] of them, in their order and in one round trip.
    ///
    /// An event counts as published when Redis has answered for it. After an error the connection
    /// is dropped, and the next call makes a new one.
    pub async fn publish(&self, events: &[OutboxEvent]) -> Result<(), NotPublished> {
        failpoint::visit("relay.publish.before").await;
        let mut slot = self.connection.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.connect().await.map_err(|error| self.none(&error))?,
        };
        let mut pipeline = Pipeline::with_capacity(events.len());
        pipeline.ignore_errors();
        for event in events {
            self.add(&mut pipeline, event);
        }
        let answers: Vec<Result<Value, RedisError>> = pipeline
            .query_async(&mut connection)
            .await
            .map_err(|error| self.none(&error))?;

        failpoint::visit("relay.publish.after").await;
        let mut published = Vec::with_capacity(events.len());
        let mut refused = None;
        for (event, answer) in events.iter().zip(answers) {
            match answer {
                Ok(_) => published.push(event.id),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            None if published.len() == events.len() => {
                *slot = Some(connection);
                Ok(())
            }
            None => Err(NotPublished {
                published,
                reason: "Redis answered fewer commands than were sent".to_owned(),
            }),
            Some(error) => Err(NotPublished {
                published,
                reason: self.at(&error),
            }),
        }
    }

    pub(super) async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        crate::tls::install();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The stream or channel of a type of event.
    pub(super) fn key(&self, event_type: EventType) -> String {
        format!("{}{event_type}", self.prefix)
    }

    /// Where it is, without user and password.
    pub fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    fn add(&self, pipeline: &mut Pipeline, event: &OutboxEvent) {
        let name = event.event_type.as_str();
        let key = self.key(event.event_type);
        match self.kind {
            // `~` lets Redis trim whole nodes only: it keeps a little more, and costs far less.
            Kind::Stream { maxlen } => pipeline
                .cmd("XADD")
                .arg(key)
                .arg("MAXLEN")
                .arg("~")
                .arg(maxlen)
                .arg("*")
                .arg("event")
                .arg(event.body())
                .arg("type")
                .arg(name),
            Kind::PubSub => pipeline.cmd("PUBLISH").arg(key).arg(event.body()),
        };
    }

    fn none(&self, error: &RedisError) -> NotPublished {
        NotPublished {
            published: Vec::new(),
            reason: self.at(error),
        }
    }

    /// An error, with where it happened.
    pub(super) fn at(&self, error: &RedisError) -> String {
        format!("Redis at {} (REDIS_URL): {error}", self.address())
    }
}
