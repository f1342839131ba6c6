//! The event bus checks of `voice-sync doctor`.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;

use super::check::Check;
use crate::core::event::EventType;
use crate::core::exit::Exit;
use crate::events::publisher::{Kind, Publisher};
use crate::events::queue::{Queue, Shape};

const BUS: &str = "event bus";
const STREAMS: &str = "streams";
const MEMORY: &str = "bus memory";

/// Checks the Redis, and writes nothing to it.
pub async fn bus(publisher: &Publisher) -> Vec<Check> {
    let mut connection = match publisher.server().connect().await {
        Ok(connection) => connection,
        Err(error) => {
            return vec![
                Check::broken(BUS, Exit::Temporary, publisher.server().at(&error))
                    .advise("start Redis or correct REDIS_URL; until then, events wait in the outbox, and none is \
                             lost"),
            ];
        }
    };
    let said: Result<String, _> = redis::cmd("INFO").query_async(&mut connection).await;
    let mut checks = match said {
        Ok(text) => {
            let info = fields(&text);
            let mut checks = about(&publisher.address(), &info);
            checks.push(persistence(&info, saves(&mut connection).await));
            checks
        }
        Err(error) => vec![Check::doubtful(
            BUS,
            format!(
                "memory and persistence not checked: {}",
                publisher.server().at(&error)
            ),
            "allow the Redis user to run INFO",
        )],
    };
    if let Some(reason) = refused(publisher, &mut connection).await {
        checks.push(
            Check::broken(BUS, Exit::Temporary, reason).advise(
                "give the Redis user this permission; until then, events wait in the outbox",
            ),
        );
    }
    match publisher.kind() {
        Kind::Stream { .. } => checks.push(streams(publisher, &mut connection).await),
        Kind::PubSub => checks.push(Check::doubtful(
            STREAMS,
            "events go to channels: a consumer that is not subscribed at that moment never gets them",
            "use --events stream: events in a stream wait for their consumers",
        )),
    }
    checks
}

/// What this user lacks permission for, where Redis can say so without a write: from version 7 on, if the user may
/// use ACL.
async fn refused(publisher: &Publisher, connection: &mut MultiplexedConnection) -> Option<String> {
    let who: String = redis::cmd("ACL")
        .arg("WHOAMI")
        .query_async(connection)
        .await
        .ok()?;
    for event_type in EventType::ALL {
        let mut ask = redis::cmd("ACL");
        ask.arg("DRYRUN").arg(&who);
        let key = publisher.key(event_type);
        match publisher.kind() {
            Kind::Stream { .. } => ask.arg("XADD").arg(key).arg("*").arg("event").arg("{}"),
            Kind::PubSub => ask.arg("PUBLISH").arg(key).arg("{}"),
        };
        let answer: String = ask.query_async(connection).await.ok()?;
        if answer != "OK" {
            return Some(answer);
        }
    }
    None
}

async fn streams(publisher: &Publisher, connection: &mut MultiplexedConnection) -> Check {
    let mut others = Vec::new();
    for event_type in EventType::ALL {
        let key = publisher.key(event_type);
        let kind: Result<String, _> = redis::cmd("TYPE").arg(&key).query_async(connection).await;
        match kind.as_deref() {
            Ok("stream" | "none") => {}
            Ok(other) => others.push(format!("{key} is a {other}")),
            Err(error) => others.push(format!("{key}: {}", publisher.server().at(error))),
        }
    }
    match others.is_empty() {
        true => Check::fine(
            STREAMS,
            "the keys of events are streams or do not exist yet",
        ),
        false => Check::broken(STREAMS, Exit::Temporary, others.join("; "))
            .advise("rename these keys, or set another --event-prefix"),
    }
}

/// Checks that the application's queue exists and has a supported type.
pub async fn queue(queue: &Queue) -> Check {
    const CHECK: &str = "queue";
    match queue.open().await {
        Ok((_, Shape::Set)) => Check::fine(
            CHECK,
            "a set; voices are removed from it when they are finished",
        ),
        Ok((_, Shape::List)) => {
            Check::fine(CHECK, "a list; voices in its jobs are looked up first")
        }
        Ok((_, Shape::Missing)) => Check::fine(CHECK, "the queue is empty"),
        Err(reason) => Check::doubtful(
            CHECK,
            reason.to_string(),
            "passes work without the queue, and no voice is lost; to use the queue, correct this",
        ),
    }
}

fn fields(info: &str) -> HashMap<&str, &str> {
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .collect()
}

fn about(address: &str, info: &HashMap<&str, &str>) -> Vec<Check> {
    let field = |name: &str| info.get(name).copied().unwrap_or_default();
    let version = field("redis_version");
    let bus = match field("role") {
        "slave" => Check::broken(
            BUS,
            Exit::Temporary,
            format!("Redis {version} at {address} is a replica and accepts no events"),
        )
        .advise("use the URL of the primary"),
        _ => Check::fine(BUS, format!("Redis {version} at {address}")),
    };
    let policy = field("maxmemory_policy");
    let number = |name: &str| field(name).parse::<u64>().unwrap_or_default();
    let (used, most) = (number("used_memory"), number("maxmemory"));
    if policy == "noeviction" && most > 0 && used >= most {
        let says = format!("Redis is full ({used} of {most} bytes are used) and accepts no events");
        let full = Check::broken(MEMORY, Exit::Temporary, says)
            .advise("raise maxmemory, or delete data that is not needed; until then, events wait in the outbox");
        return vec![bus, full];
    }
    let may_evict = policy.starts_with("allkeys") && field("maxmemory") != "0";
    let memory = match may_evict {
        true => Check::doubtful(
            MEMORY,
            format!(
                "when Redis is full, it evicts any key ({policy}), also streams with their events"
            ),
            "set maxmemory-policy to noeviction, or to a policy that begins with volatile",
        ),
        false => Check::fine(
            MEMORY,
            format!("streams are not evicted when Redis is full ({policy})"),
        ),
    };
    vec![bus, memory]
}

/// When snapshots are saved; `None` if this user may not read the setting.
async fn saves(connection: &mut MultiplexedConnection) -> Option<String> {
    let mut ask = redis::cmd("CONFIG");
    let answer: Result<HashMap<String, String>, _> =
        ask.arg("GET").arg("save").query_async(connection).await;
    answer.ok()?.remove("save")
}

fn persistence(info: &HashMap<&str, &str>, saves: Option<String>) -> Check {
    const CHECK: &str = "bus persistence";
    const ADVICE: &str =
        "set appendonly yes if consumers must not miss events after a crash of Redis";
    if info.get("aof_enabled") == Some(&"1") {
        return Check::fine(CHECK, "Redis keeps an append-only file");
    }
    match saves.as_deref() {
        Some("") => Check::doubtful(
            CHECK,
            "Redis saves nothing to disk: a restart loses all events that no consumer has read",
            ADVICE,
        ),
        Some(_) | None => Check::doubtful(
            CHECK,
            "Redis saves snapshots at most: a crash loses the events after the last snapshot",
            ADVICE,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::State;

    #[test]
    fn reports_redis_settings_that_could_lose_events() {
        let info = |text: &str| {
            let text = format!("# Memory\r\nredis_version:7.0.15\r\n{text}");
            about("here", &fields(&text))
        };
        let states = |text: &str| info(text).iter().map(|f| f.state).collect::<Vec<_>>();
        let fine = "role:master\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n";
        assert_eq!(states(fine), [State::Fine, State::Fine]);
        let evicting = fine.replace("maxmemory:0", "maxmemory:1000");
        assert_eq!(states(&evicting), [State::Fine, State::Doubtful]);
        let volatile = evicting.replace("allkeys", "volatile");
        assert_eq!(states(&volatile), [State::Fine, State::Fine]);
        let full = "used_memory:1000\r\nmaxmemory:1000\r\nmaxmemory_policy:noeviction\r\n";
        assert_eq!(states(full)[1], State::Broken(Exit::Temporary));
        let roomy = full.replace("used_memory:1000", "used_memory:999");
        assert_eq!(states(&roomy)[1], State::Fine);
        let replica = fine.replace("master", "slave");
        assert_eq!(states(&replica)[0], State::Broken(Exit::Temporary));

        let state =
            |text, saves: Option<&str>| persistence(&fields(text), saves.map(str::to_owned)).state;
        assert_eq!(state("aof_enabled:1", Some("")), State::Fine);
        assert_eq!(state("aof_enabled:0", Some("")), State::Doubtful);
        assert_eq!(state("aof_enabled:0", None), State::Doubtful);
    }
}
