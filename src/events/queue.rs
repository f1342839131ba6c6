//! The application's own queue of waiting voices, in Redis.
//!
//! It has one of two types: a set of row ids, from which voices are removed when they are finished, or a list of JSON
//! jobs, which are hints about voices to look up first. The queue is never the only record of a voice; the table is.

use anyhow::{anyhow, bail};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline, pipe};
use serde_json::Value;

use super::InvalidRedisUrl;
use super::server::Server;

/// Members of a set per page, approximately.
const PAGE: u32 = 500;

/// The queue under a key. It connects when it is first used.
pub struct Queue {
    server: Server,
    key: String,
}

/// The voices in the application's jobs.
#[derive(Debug, Default)]
pub struct Hints {
    /// Row or provider ids.
    pub voices: Vec<String>,
    /// The number of jobs that cannot be read.
    pub malformed: usize,
}

/// The type of the value under the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Set,
    List,
    Missing,
}

impl Queue {
    /// The queue under this key of the Redis at `url`.
    pub fn new(url: &str, key: String) -> Result<Self, InvalidRedisUrl> {
        let server = Server::new(url)?;
        Ok(Self { server, key })
    }

    /// The oldest jobs of a list. If `taken`, they are removed from it.
    pub async fn hints(&self, most: u64, taken: bool) -> anyhow::Result<Hints> {
        let (mut connection, shape) = self.open().await?;
        match shape {
            Shape::List => {}
            Shape::Set | Shape::Missing => return Ok(Hints::default()),
        }
        // The application pushes at the other end. (RPOP takes several only since Redis 6.2.)
        let oldest = 0_i64.saturating_sub_unsigned(most);
        let mut commands = pipe();
        let commands = commands.atomic().cmd("LRANGE").arg(&self.key);
        let commands = commands.arg(oldest).arg(-1);
        if taken {
            let trim = commands.cmd("LTRIM").arg(&self.key);
            trim.arg(0).arg(oldest - 1).ignore();
        }
        let (jobs,): (Vec<Vec<u8>>,) = self.query(&mut connection, commands).await?;
        let voices: Vec<_> = jobs.iter().filter_map(|job| named_by(job)).collect();
        Ok(Hints {
            malformed: jobs.len() - voices.len(),
            voices,
        })
    }

    /// Its key in Redis.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// An iteration over the members, if the queue is a set.
    pub async fn members(&self) -> anyhow::Result<Option<Members<'_>>> {
        let (connection, shape) = self.open().await?;
        Ok(match shape {
            Shape::Set => Some(Members {
                queue: self,
                connection,
                cursor: Some(0),
            }),
            Shape::List | Shape::Missing => None,
        })
    }

    pub(crate) async fn open(&self) -> anyhow::Result<(MultiplexedConnection, Shape)> {
        let connecting = self.server.connect().await;
        let mut connection = connecting.map_err(|error| anyhow!(self.server.at(&error)))?;
        let mut ask = pipe();
        ask.cmd("TYPE").arg(&self.key);
        let (shape,): (String,) = self.query(&mut connection, &ask).await?;
        let shape = match shape.as_str() {
            "set" => Shape::Set,
            "list" => Shape::List,
            "none" => Shape::Missing,
            other => bail!(
                "the key {:?} (--queue) holds a {other}; set --queue to the application's set or list of waiting \
                 voices, or remove the option",
                self.key
            ),
        };
        Ok((connection, shape))
    }

    async fn query<T: FromRedisValue>(
        &self,
        connection: &mut MultiplexedConnection,
        commands: &Pipeline,
    ) -> anyhow::Result<T> {
        let answer = commands.query_async(connection).await;
        answer.map_err(|error| anyhow!(self.server.at(&error)))
    }
}

/// An iteration over a set's members.
pub struct Members<'a> {
    queue: &'a Queue,
    connection: MultiplexedConnection,
    /// The cursor of the next page; `None` at the end.
    cursor: Option<u64>,
}

impl Members<'_> {
    /// The next members, without those that cannot be ids; `None` after the last.
    pub async fn next(&mut self) -> anyhow::Result<Option<Vec<String>>> {
        let Some(cursor) = self.cursor else {
            return Ok(None);
        };
        let mut scan = pipe();
        let arguments = scan.cmd("SSCAN").arg(&self.queue.key).arg(cursor);
        arguments.arg("COUNT").arg(PAGE);
        let page = self.queue.query(&mut self.connection, &scan).await?;
        let ((next, members),): ((u64, Vec<Vec<u8>>),) = page;
        self.cursor = (next != 0).then_some(next);
        let texts = members.into_iter().flat_map(String::from_utf8);
        Ok(Some(texts.filter(|text| could_be_id(text)).collect()))
    }

    /// Removes members from the set.
    pub async fn remove(&mut self, members: &[String]) -> anyhow::Result<()> {
        if members.is_empty() {
            return Ok(());
        }
        let mut remove = pipe();
        remove
            .cmd("SREM")
            .arg(&self.queue.key)
            .arg(members)
            .ignore();
        self.queue.query(&mut self.connection, &remove).await
    }
}

/// The voice that a job names, by its row or else by its provider id.
pub fn named_by(job: &[u8]) -> Option<String> {
    let job: Value = serde_json::from_slice(job).ok()?;
    let id = |field| {
        let id = &job[field];
        let number = || id.as_i64().map(|number| number.to_string());
        let text = id.as_str().map(str::to_owned).or_else(number);
        text.filter(|text| could_be_id(text))
    };
    id("voice_id").or_else(|| id("elevenlabs_voice_id"))
}

/// PostgreSQL refuses a text with a NUL, SQLite cuts it.
fn could_be_id(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_is_identified_by_row_id_or_else_by_provider_id() {
        for (job, named) in [
            (r#"{"voice_id":"r","elevenlabs_voice_id":"p"}"#, Some("r")),
            (r#"{"voice_id":null,"elevenlabs_voice_id":"p"}"#, Some("p")),
            (r#"{"elevenlabs_voice_id":"p","attempts":[{}]}"#, Some("p")),
            (r#"{"voice_id":"","elevenlabs_voice_id":"p"}"#, Some("p")),
            (r#"{"voice_id":7}"#, Some("7")),
            (r#"{"voice_id":7.5}"#, None),
            (r#"{"voice_id":"a\u0000b"}"#, None),
            (r#"{"voice_id":["r"]}"#, None),
            (r#"{"attempts":0}"#, None),
            (r#"["r"]"#, None),
            (r#""r""#, None),
            ("{\"voice_id\":\"r\"", None),
            ("", None),
        ] {
            assert_eq!(named_by(job.as_bytes()).as_deref(), named, "{job}");
        }
        assert_eq!(named_by(b"{\"voice_id\":\"\xff\"}"), None);
    }
}
