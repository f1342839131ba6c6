//! What `voice-sync doctor` says of a PostgreSQL.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Row};

use super::index::{Indexes, drop_left_behind, indexes};
use super::{PostgresStore, Sessions, seconds};
use crate::exit::Exit;
use crate::finding::Finding;
use crate::store::adopt::{Dialect, make_index, of_processing};
use crate::store::checkup::{self, CLOCKS_APART, Times, counted, found};
use crate::store::{Names, StoreError};

impl Sessions {
    /// Which server it is, whether it takes writes, and what its clock says.
    pub(in crate::store) async fn checkup(&self) -> Result<Finding, StoreError> {
        const SERVER: &str = "
            SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby,
                   current_setting('default_transaction_read_only')::bool AS read_only,
                   extract(epoch FROM clock_timestamp())::float8 AS clock";
        let mut session = self.begin().await?;
        let row = session.query(SERVER).fetch_one(&mut *session).await?;
        session.keep().await?;
        let version: String = row.try_get("version")?;
        let pooler = match self.is_pooled() {
            true => ", by way of a pooler",
            false => "",
        };
        if row.try_get("standby")? || row.try_get("read_only")? {
            let says = format!("PostgreSQL {version}{pooler}, which only allows reading");
            return Ok(Finding::broken("database", Exit::Database, says)
                .advise("give the URL of the primary"));
        }
        let there = seconds(row.try_get("clock")?);
        let here = SystemTime::now().duration_since(UNIX_EPOCH);
        let apart = here.map_or(there, |here| here.abs_diff(there));
        let says =
            format!("PostgreSQL {version}{pooler}, its clock is {apart:.1?} from this host's");
        Ok(match apart < CLOCKS_APART {
            true => Finding::fine("database", says),
            false => Finding::doubtful(
                "database",
                says,
                "have both set by NTP; only the database's clock decides, but logs will mislead",
            ),
        })
    }
}

impl PostgresStore {
    pub(in crate::store) async fn checkup(&self, names: &Names, findings: &mut Vec<Finding>) {
        if self.own_tables {
            findings.push(found("privileges", self.own_privileges().await));
        }
        findings.push(checkup::update(self.explain_update().await));
        findings.push(found("row security", self.row_security().await));
        findings.push(found("obstacles", self.obstacles(names).await));
        findings.push(found("index", self.index(names).await));
        findings.push(counted("backlog", self.backlog().await));
        findings.push(counted("time zone", self.times(names).await));
        if self.own_tables {
            findings.push(counted("second poller", self.second_poller().await));
        }
    }

    async fn own_privileges(&self) -> Result<Finding, StoreError> {
        const PRIVILEGES: &str = "
            SELECT quote_ident(current_user) AS role,
                   ARRAY(SELECT DISTINCT p.privilege
                         FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])
                              WITH ORDINALITY AS p (privilege, place)
                         WHERE c.relnamespace = to_regnamespace('voice_sync') AND c.relkind = 'r'
                           AND NOT (c.relname IN ('migrations', 'adoptions') AND p.privilege <> 'SELECT')
                           AND NOT (c.relname = 'completions' AND p.privilege = 'DELETE')
                           AND NOT has_table_privilege(c.oid, p.privilege)) AS missing";
        let mut session = self.sessions.begin().await?;
        let row = session.query(PRIVILEGES).fetch_one(&mut *session).await?;
        session.keep().await?;
        let (role, missing): (String, Vec<String>) =
            (row.try_get("role")?, row.try_get("missing")?);
        if missing.is_empty() {
            return Ok(Finding::fine(
                "privileges",
                format!("role {role} has what it needs"),
            ));
        }
        let missing = missing.join(", ");
        let says = format!("role {role} lacks {missing} on voice-sync's own tables");
        Ok(Finding::broken("privileges", Exit::Config, says).advise(format!(
            "as their owner, run: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA voice_sync TO {role};"
        )))
    }

    async fn row_security(&self) -> Result<Finding, StoreError> {
        const ACTIVE: &str =
            "SELECT row_security_active(to_regclass($1)), quote_ident(current_user)";
        let mut session = self.sessions.begin().await?;
        let query = session.query(ACTIVE).bind(&self.table);
        let row = query.fetch_one(&mut *session).await?;
        session.keep().await?;
        let role: String = row.try_get(1)?;
        Ok(match row.try_get(0)? {
            false => Finding::fine("row security", format!("hides nothing from role {role}")),
            true => Finding::doubtful(
                "row security",
                format!(
                    "policies of table {} decide which voices role {role} sees",
                    self.table
                ),
                format!("give it a policy that shows all, or run: ALTER ROLE {role} BYPASSRLS;"),
            ),
        })
    }

    /// Triggers and constraints that could refuse what voice-sync writes.
    async fn obstacles(&self, names: &Names) -> Result<Finding, StoreError> {
        const OBSTACLES: &str = "
            SELECT 'trigger ' || quote_ident(tgname) AS name, '' AS definition
            FROM pg_trigger
            WHERE tgrelid = to_regclass($1) AND NOT tgisinternal AND tgenabled <> 'D'
              AND tgtype & 16 <> 0
            UNION ALL
            SELECT 'constraint ' || quote_ident(conname), pg_get_constraintdef(oid)
            FROM pg_constraint c
            WHERE conrelid = to_regclass($1)
              AND EXISTS (SELECT FROM pg_attribute a
                          WHERE a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
                            AND (c.contype = 'c' AND a.attname = ANY ($2)
                                 OR c.contype = 'f' AND a.attname = $3))
            UNION ALL
            SELECT format('constraint %I of type %s', conname, format_type(a.atttypid, -1)),
                   pg_get_constraintdef(c.oid)
            FROM pg_constraint c JOIN pg_attribute a ON a.atttypid = c.contypid
            WHERE a.attrelid = to_regclass($1) AND a.attname = ANY ($2) AND c.contype = 'c'
            ORDER BY name";
        let columns = &names.columns;
        let written = [&columns.status, &columns.preview_url, &columns.completed_at];
        let written: Vec<&str> = written.iter().map(|name| name.as_str()).collect();
        let mut session = self.sessions.begin().await?;
        let query = session.query(OBSTACLES).bind(&self.table).bind(written);
        let query = query.bind(columns.status.as_str());
        let rows = query.fetch_all(&mut *session).await?;
        session.keep().await?;
        let mut obstacles = Vec::new();
        for row in rows {
            let definition: String = row.try_get("definition")?;
            if !allows(&definition, &self.status, names) {
                obstacles.push(row.try_get::<String, _>("name")?);
            }
        }
        Ok(match obstacles.is_empty() {
            true => Finding::fine("obstacles", "no trigger or constraint is in the way"),
            false => Finding::doubtful(
                "obstacles",
                format!(
                    "{} of table {} may refuse an update",
                    obstacles.join(", "),
                    self.table
                ),
                "see that they let a role without a session of the application write status, preview and completion",
            ),
        })
    }

    async fn index(&self, names: &Names) -> Result<Finding, StoreError> {
        let Indexes {
            rows,
            serve,
            partitions,
        } = indexes(&self.sessions, names).await?;
        let on_each = || {
            let held = of_processing(Dialect::Postgres, names);
            let statement = |partition| format!("CREATE INDEX CONCURRENTLY ON {partition} {held};");
            partitions
                .iter()
                .map(statement)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let advice = match partitions.is_empty() {
            true => make_index(Dialect::Postgres, names),
            false => on_each(),
        };
        let advice = match drop_left_behind(&self.sessions, names).await? {
            Some(drop) => format!("{drop}; {advice}"),
            None => advice,
        };
        Ok(checkup::index(rows, serve, advice))
    }

    async fn backlog(&self) -> Result<Finding, StoreError> {
        let Self {
            table,
            status,
            processing,
            created_at,
            ..
        } = self;
        let sql = format!(
            "SELECT count(*), extract(epoch FROM now() - min({created_at}))::float8
             FROM {table} v WHERE v.{status} = {processing}"
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        let oldest: Option<f64> = row.try_get(1)?;
        let voices = row.try_get::<i64, _>(0)?.unsigned_abs();
        Ok(checkup::backlog(voices, oldest.map(seconds)))
    }

    async fn times(&self, names: &Names) -> Result<Finding, StoreError> {
        // The session's own zone is UTC, whatever others have.
        const DEFAULT: &str = "
            SELECT (SELECT substring(c FROM '(?i)^timezone=(.*)$')
                    FROM pg_db_role_setting s, unnest(s.setconfig) c
                    WHERE c ~* '^timezone='
                      AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                    ORDER BY s.setdatabase = 0, s.setrole = 0 DESC LIMIT 1)
            FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND a.atttypid = 'timestamp'::regtype
              AND pg_get_expr(d.adbin, d.adrelid) ~* '(now\\(|current_timestamp|localtimestamp|clock_timestamp|transaction_timestamp)'
              AND pg_get_expr(d.adbin, d.adrelid) !~* '(time zone|timezone\\()'";
        let Self {
            table,
            id,
            status,
            processing,
            created_at,
            ..
        } = self;
        let sql = format!(
            "SELECT extract(epoch FROM max({created_at}) - now())::float8 AS ahead,
                    extract(epoch FROM min(w.first_seen - {created_at}) FILTER (WHERE w.is_late))::float8 AS behind,
                    count(*) FILTER (WHERE w.is_late) AS late
             FROM {table} v
             LEFT JOIN (SELECT row_id, first_seen, first_seen > min(first_seen) OVER () + interval '1 hour' AS is_late
                        FROM {known} k) w ON w.row_id = v.{id}::text
             WHERE v.{status} = {processing}",
            known = self.known(),
        );
        let mut session = self.sessions.begin().await?;
        let query = session.query(DEFAULT).bind(table);
        let zone = query
            .bind(names.columns.created_at.as_str())
            .fetch_optional(&mut *session)
            .await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        let zone: Option<String> = zone.map(|row| row.try_get(0)).transpose()?.flatten();
        let span =
            |column| Ok::<_, sqlx::Error>(row.try_get::<Option<f64>, _>(column)?.map(seconds));
        let times = Times {
            default_in: zone.filter(|zone| !names.zone.is(zone)),
            ahead: span("ahead")?,
            behind: span("behind")?,
            late: row.try_get("late")?,
        };
        Ok(checkup::times(&times, &names.zone))
    }

    /// Counts rows completed, since the oldest event that is still known, without one of their own.
    async fn second_poller(&self) -> Result<Finding, StoreError> {
        const SINCE: &str = "SELECT min(occurred_at) FROM voice_sync.outbox";
        let Self {
            table,
            id,
            status,
            completed,
            completed_before,
            ..
        } = self;
        let mut session = self.sessions.begin().await?;
        let row = session.query(SINCE).fetch_one(&mut *session).await?;
        let mut strangers = None;
        if let Some(since) = row.try_get::<Option<DateTime<Utc>>, _>(0)? {
            let sql = format!(
                "SELECT count(*) FROM {table} v
                 WHERE v.{status} = {completed} AND {completed_before} > $1
                   AND NOT EXISTS (SELECT FROM voice_sync.outbox o
                                   WHERE o.voice_id = v.{id}::text AND o.event_type = 'voice.created')"
            );
            let query = session.query(AssertSqlSafe(sql)).bind(since);
            let row = query.fetch_one(&mut *session).await?;
            strangers = Some(row.try_get::<i64, _>(0)?.unsigned_abs());
        }
        session.keep().await?;
        Ok(checkup::second_poller(strangers))
    }
}

/// Whether a constraint lists what the status may be, and lists what voice-sync writes, as that of
/// SQLAlchemy's enums without a type of their own. PostgreSQL prints an `IN` as `= ANY`.
fn allows(definition: &str, status: &str, names: &Names) -> bool {
    let Some((column, list)) = definition.split_once(" = ANY (") else {
        return false;
    };
    let column = column.trim_start_matches("CHECK ").trim_start_matches('(');
    let column = column.trim_end_matches("::text").trim_end_matches(')');
    let is_status = [status, status.trim_matches('"'), "VALUE"].contains(&column);
    let is_whole = [" AND ", " OR "].iter().all(|word| !list.contains(word));
    is_status && is_whole && checkup::lists_ours(list, names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ColumnNames, NaiveZone, StatusValues, TableName};

    #[test]
    fn only_a_list_of_values_is_excused() {
        let names = Names {
            table: TableName::parse("voices").expect("a name"),
            columns: ColumnNames::parse("").expect("names"),
            statuses: StatusValues::parse("").expect("values"),
            zone: NaiveZone::default(),
        };
        let list =
            "ANY ((ARRAY['completed'::character varying, 'failed'::character varying])::text[])";
        for (definition, is_allowed) in [
            (format!("CHECK (((status)::text = {list}))"), true),
            (format!("CHECK (((VALUE)::text = {list}))"), true),
            (
                "CHECK ((status = ANY (ARRAY['completed'::text, 'failed'::text])))".to_owned(),
                true,
            ),
            (
                "CHECK ((status = ANY (ARRAY['completed'::text])))".to_owned(),
                false,
            ),
            (format!("CHECK (((status)::text <> {list}))"), false),
            (format!("CHECK (((name)::text = {list}))"), false),
            (
                format!("CHECK (((status)::text = {list} AND (preview_url IS NOT NULL)))"),
                false,
            ),
            (
                "CHECK ((status = 'completed'::text) OR (status = 'failed'::text))".to_owned(),
                false,
            ),
        ] {
            assert_eq!(
                allows(&definition, "\"status\"", &names),
                is_allowed,
                "{definition}"
            );
        }
    }
}
