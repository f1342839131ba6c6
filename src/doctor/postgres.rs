//! The checks of `voice-sync doctor` for PostgreSQL.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::check::Check;
use super::database::{self, CLOCKS_APART, found};
use crate::core::exit::Exit;
use crate::store::{
    Args, Column, Connections, Dialect, Indexes, Names, Store, StoreError, Value, drop_left_behind,
    indexes, make_index, of_processing,
};

/// Checks the version, whether the server accepts writes, and its clock.
pub(super) async fn server(connections: &Connections) -> Result<Check, StoreError> {
    const SERVER: &str = "
        SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby,
               current_setting('default_transaction_read_only')::bool AS read_only,
               extract(epoch FROM clock_timestamp())::float8 AS clock";
    let row = connections
        .fetch_one(SERVER.to_owned(), Args::new(Dialect::Postgres))
        .await?;
    let version: String = row.get("version")?;
    let pooler = match connections.is_pooled() {
        true => ", through a pooler",
        false => "",
    };
    if row.get("standby")? || row.get("read_only")? {
        let says = format!("PostgreSQL {version}{pooler}, is read-only");
        return Ok(
            Check::broken("database", Exit::Database, says).advise("use the URL of the primary")
        );
    }
    let there: Duration = row.get("clock")?;
    let here = SystemTime::now().duration_since(UNIX_EPOCH);
    let apart = here.map_or(there, |here| here.abs_diff(there));
    let says =
        format!("PostgreSQL {version}{pooler}; its clock differs from this host's by {apart:.1?}");
    Ok(match apart < CLOCKS_APART {
        true => Check::fine("database", says),
        false => Check::doubtful(
            "database",
            says,
            "synchronise both clocks with NTP; voice-sync uses the database's clock, but times in logs do not match \
             it",
        ),
    })
}

pub(super) async fn table(store: &Store, connections: &Connections, names: &Names) -> Vec<Check> {
    let mut checks = Vec::new();
    if store.has_own_tables() {
        checks.push(found("privileges", own_privileges(connections).await));
    }
    checks.push(found(
        "row security",
        row_security(store, connections).await,
    ));
    checks.push(found(
        "obstacles",
        obstacles(store, connections, names).await,
    ));
    checks.push(found("index", index(connections, names).await));
    checks.push(found(
        "row versions",
        row_versions(store, connections).await,
    ));
    checks
}

/// Whether the daemon can tell new rows from old ones by their `xmin`.
async fn row_versions(store: &Store, connections: &Connections) -> Result<Check, StoreError> {
    const CHECK: &str = "row versions";
    const XMIN: &str = "
        SELECT quote_ident(current_user) AS role, relkind <> 'r' AS has_none
        FROM pg_class WHERE oid = to_regclass($1)";
    let table = store.table();
    let mut args = store.database().args();
    args.bind(table.table.as_str());
    let row = connections.fetch_one(XMIN.to_owned(), args).await?;
    let role: String = row.get("role")?;
    const READS_ALL: &str = "the daemon reads all voices in processing to find new ones";
    Ok(match (table.has_row_versions, row.get("has_none")?) {
        (true, _) => Check::fine(
            CHECK,
            "the daemon finds new voices by the version of their rows",
        ),
        (false, true) => Check::fine(
            CHECK,
            format!("{} is not an ordinary table: {READS_ALL}", table.table),
        ),
        (false, false) => Check::doubtful(
            CHECK,
            format!(
                "role {role} may not read xmin of {}: {READS_ALL}",
                table.table
            ),
            format!("run: GRANT SELECT (xmin) ON {} TO {role};", table.table),
        ),
    })
}

async fn own_privileges(connections: &Connections) -> Result<Check, StoreError> {
    const PRIVILEGES: &str = "
        SELECT quote_ident(current_user) AS role,
               ARRAY(SELECT DISTINCT p.privilege
                     FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])
                          WITH ORDINALITY AS p (privilege, place)
                     WHERE c.relnamespace = to_regnamespace('voice_sync') AND c.relkind = 'r'
                       AND NOT (c.relname IN ('migrations', 'adoptions') AND p.privilege <> 'SELECT')
                       AND NOT (c.relname IN ('completions', 'nudges') AND p.privilege = 'DELETE')
                       AND NOT has_table_privilege(c.oid, p.privilege)) AS missing";
    let row = connections
        .fetch_one(PRIVILEGES.to_owned(), Args::new(Dialect::Postgres))
        .await?;
    let (role, missing) = (row.get::<String>("role")?, row.texts("missing")?);
    if missing.is_empty() {
        return Ok(Check::fine(
            "privileges",
            format!("role {role} has all privileges on voice-sync's own tables"),
        ));
    }
    let missing = missing.join(", ");
    let says = format!("role {role} lacks {missing} on voice-sync's own tables");
    Ok(Check::broken("privileges", Exit::Config, says).advise(format!(
        "as their owner, run: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA voice_sync TO {role};"
    )))
}

async fn row_security(store: &Store, connections: &Connections) -> Result<Check, StoreError> {
    const ACTIVE: &str = "SELECT row_security_active(to_regclass($1)) AS is_active, quote_ident(current_user) AS \
                          role";
    let table = &store.table().table;
    let mut args = store.database().args();
    args.bind(table.as_str());
    let row = connections.fetch_one(ACTIVE.to_owned(), args).await?;
    let role: String = row.get("role")?;
    Ok(match row.get("is_active")? {
        false => Check::fine(
            "row security",
            format!("no rows are hidden from role {role}"),
        ),
        true => Check::doubtful(
            "row security",
            format!("policies of table {table} may hide voices from role {role}"),
            format!("add a policy that shows it all rows, or run: ALTER ROLE {role} BYPASSRLS;"),
        ),
    })
}

/// Triggers and constraints that could refuse what voice-sync writes.
async fn obstacles(
    store: &Store,
    connections: &Connections,
    names: &Names,
) -> Result<Check, StoreError> {
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
    let written = written.iter().map(|name| Some(name.as_str()));
    let table = store.table();
    let mut args = store.database().args();
    args.bind(table.table.as_str());
    args.bind(Value::Column(Column::Text(written.collect())));
    args.bind(columns.status.as_str());
    let rows = connections.fetch_all(OBSTACLES.to_owned(), args).await?;
    let mut obstacles = Vec::new();
    for row in rows {
        let definition: String = row.get("definition")?;
        if !allows(&definition, &table.status, names) {
            obstacles.push(row.get::<String>("name")?);
        }
    }
    Ok(match obstacles.is_empty() {
        true => Check::fine("obstacles", "no trigger or constraint can refuse an update"),
        false => Check::doubtful(
            "obstacles",
            format!(
                "{} of table {} may refuse an update",
                obstacles.join(", "),
                table.table
            ),
            "check that they allow voice-sync's role, without settings of the application's sessions, to write the \
             status, the preview URL and the completion time",
        ),
    })
}

async fn index(connections: &Connections, names: &Names) -> Result<Check, StoreError> {
    let Indexes {
        rows,
        serve,
        partitions,
    } = indexes(connections, names).await?;
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
    let advice = match drop_left_behind(connections, names).await? {
        Some(drop) => format!("{drop}; {advice}"),
        None => advice,
    };
    Ok(database::index(rows, serve, advice))
}

/// The time zone of the database's or a role's settings, if `created_at` has no time zone and its default is the
/// current time.
pub(super) async fn default_zone(
    store: &Store,
    connections: &Connections,
    names: &Names,
) -> Result<Option<String>, StoreError> {
    // The session's own time zone is always UTC.
    const DEFAULT: &str = "
        SELECT (SELECT substring(c FROM '(?i)^timezone=(.*)$')
                FROM pg_db_role_setting s, unnest(s.setconfig) c
                WHERE c ~* '^timezone='
                  AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                ORDER BY s.setdatabase = 0, s.setrole = 0 DESC LIMIT 1) AS zone
        FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND a.atttypid = 'timestamp'::regtype
          AND pg_get_expr(d.adbin, d.adrelid) ~* '(now\\(|current_timestamp|localtimestamp|clock_timestamp|transaction_timestamp)'
          AND pg_get_expr(d.adbin, d.adrelid) !~* '(time zone|timezone\\()'";
    let mut args = store.database().args();
    args.bind(store.table().table.as_str());
    args.bind(names.columns.created_at.as_str());
    let rows = connections.fetch_all(DEFAULT.to_owned(), args).await?;
    rows.first()
        .map_or(Ok(None), |row| row.get_optional("zone"))
}

/// Whether a constraint is a list of allowed statuses that contains what voice-sync writes, as SQLAlchemy makes it
/// for enums without a native type. PostgreSQL prints an `IN` as `= ANY`.
fn allows(definition: &str, status: &str, names: &Names) -> bool {
    let Some((column, list)) = definition.split_once(" = ANY (") else {
        return false;
    };
    let column = column.trim_start_matches("CHECK ").trim_start_matches('(');
    let column = column.trim_end_matches("::text").trim_end_matches(')');
    let is_status = [status, status.trim_matches('"'), "VALUE"].contains(&column);
    let is_whole = [" AND ", " OR "].iter().all(|word| !list.contains(word));
    is_status && is_whole && database::lists_ours(list, names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ColumnNames, NaiveZone, StatusValues, TableName};

    #[test]
    fn accepts_only_check_constraints_that_list_the_status_values() {
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
