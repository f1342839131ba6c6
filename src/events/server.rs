//! A Redis server: its address, and its time limits.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, RedisError, RedisResult};
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a URL is not a Redis URL. The URL is not repeated: it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRedisUrl {
    /// Scheme, host or database number are wrong.
    #[error(
        "it is not a Redis URL; an example is redis://user:password@host:6379/0, where 0 is the \
         number of the database (rediss:// for TLS)"
    )]
    NotRedis,
    /// A parameter that is not supported.
    #[error("its parameter {0:?} is not understood; remove it")]
    Parameter(String),
}

/// The Redis at a URL. It connects when it is first used.
pub(crate) struct Server(Client);

impl Server {
    pub(crate) fn new(url: &str) -> Result<Self, InvalidRedisUrl> {
        let parsed = Url::parse(url).map_err(|_| InvalidRedisUrl::NotRedis)?;
        if let Some((name, _)) = parsed.query_pairs().find(|(name, _)| name != "protocol") {
            return Err(InvalidRedisUrl::Parameter(name.into_owned()));
        }
        let client = Client::open(url).map_err(|_| InvalidRedisUrl::NotRedis)?;
        Ok(Self(client))
    }

    /// Its address and database number, with the password.
    pub(crate) fn info(&self) -> &ConnectionInfo {
        self.0.get_connection_info()
    }

    pub(crate) async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        crate::tls::install();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        self.0
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// An error, with the server's address.
    pub(crate) fn at(&self, error: &RedisError) -> String {
        let address = self.info().addr();
        format!("Redis at {address} (REDIS_URL): {error}")
    }
}
