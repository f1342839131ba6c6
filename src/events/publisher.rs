//! Publishes events from the outbox to Redis.

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, Value};
use tokio::sync::Mutex;
use uuid::{Uuid, uuid};

use super::InvalidRedisUrl;
use super::server::Server;
use crate::core::event::{EventType, OutboxEvent};
use crate::failpoint;

/// The maximum number of events in one round trip.
pub const BATCH: usize = 500;

/// How events are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `XADD <prefix><type> MAXLEN ~ <maxlen> * event <json> type <type>`.
    Stream {
        /// The least number of entries that a stream keeps.
        maxlen: u64,
    },
    /// `PUBLISH <prefix><type> <json>`.
    PubSub,
}

/// A connection to the event bus, made when there is something to publish.
pub struct Publisher {
    server: Server,
    kind: Kind,
    prefix: String,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// The result for some events, by their outbox ids. Events in neither list were not published.
#[derive(Debug, Default)]
pub struct Publication {
    /// Redis acknowledged them.
    pub published: Vec<i64>,
    /// Redis refused them but works, for example because their stream has another type.
    pub refused: Vec<i64>,
    /// The first reason for a refused event.
    pub refusal: Option<String>,
    /// Why the bus as a whole failed.
    pub failure: Option<String>,
}

/// Errors of the server that do not depend on the command: <https://github.com/redis/redis/blob/7.0/src/server.c>.
const SERVER_ERRORS: [&str; 12] = [
    "OOM",
    "LOADING",
    "READONLY",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "MISCONF",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "TRYAGAIN",
];

impl Publisher {
    /// A publisher to the Redis at `url`. It connects when it is first used.
    pub fn new(url: &str, kind: Kind, prefix: String) -> Result<Self, InvalidRedisUrl> {
        Ok(Self {
            server: Server::new(url)?,
            kind,
            prefix,
            connection: Mutex::new(None),
        })
    }

    /// Identifies the bus without revealing its password: a digest of its address and prefix.
    pub fn bus(&self) -> Uuid {
        const NAMESPACE: Uuid = uuid!("3f1d7f35-2a0e-4c55-8f3c-7e0c6a1b9d42");
        let info = self.server.info();
        let database = info.redis_settings().db();
        let name = format!("{}\n{database}\n{}", info.addr(), self.prefix);
        Uuid::new_v5(&NAMESPACE, name.as_bytes())
    }

    /// Publishes events in order, a [`BATCH`] per round trip.
    ///
    /// An event counts as published when Redis has acknowledged it. After a failure of the bus the connection is
    /// dropped, and the next call makes a new one.
    pub async fn publish(&self, events: &[OutboxEvent]) -> Publication {
        let mut slot = self.connection.lock().await;
        let mut publication = Publication::default();
        for batch in events.chunks(BATCH) {
            if let Err(reason) = self.publish_batch(&mut slot, batch, &mut publication).await {
                *slot = None;
                publication.failure = Some(reason);
                break;
            }
        }
        publication
    }

    /// Records the result for each event; an error says why the bus failed.
    async fn publish_batch(
        &self,
        slot: &mut Option<MultiplexedConnection>,
        events: &[OutboxEvent],
        publication: &mut Publication,
    ) -> Result<(), String> {
        failpoint::visit("bus.publish.before").await;
        let connection = match slot {
            Some(connection) => connection,
            None => {
                let made = self.server.connect().await;
                slot.insert(made.map_err(|error| self.server.at(&error))?)
            }
        };
        let mut pipeline = Pipeline::with_capacity(events.len());
        pipeline.ignore_errors();
        for event in events {
            self.add(&mut pipeline, event);
        }
        let answers: Vec<Result<Value, RedisError>> = pipeline
            .query_async(connection)
            .await
            .map_err(|error| self.server.at(&error))?;
        failpoint::visit("bus.publish.after").await;
        let answered = answers.len();
        let mut failure = None;
        for (event, answer) in events.iter().zip(answers) {
            match answer {
                Ok(_) => publication.published.push(event.id),
                Err(error) if is_about_the_server(&error) => failure = Some(error),
                Err(error) => {
                    publication.refused.push(event.id);
                    let refusal = &mut publication.refusal;
                    refusal.get_or_insert_with(|| self.server.at(&error));
                }
            }
        }
        match failure {
            None if answered == events.len() => Ok(()),
            None => Err("Redis answered fewer commands than were sent".to_owned()),
            Some(error) => Err(self.server.at(&error)),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// The stream or channel of a type of event.
    pub(crate) fn key(&self, event_type: EventType) -> String {
        format!("{}{event_type}", self.prefix)
    }

    /// Its address, without user and password.
    pub fn address(&self) -> String {
        self.server.info().addr().to_string()
    }

    fn add(&self, pipeline: &mut Pipeline, event: &OutboxEvent) {
        let name = event.event_type.as_str();
        let key = self.key(event.event_type);
        match self.kind {
            // `~` lets Redis trim whole nodes only: it keeps a few entries more, and costs far less.
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
}

fn is_about_the_server(error: &RedisError) -> bool {
    match error.code() {
        Some(code) => SERVER_ERRORS.contains(&code),
        None => true,
    }
}
