//! Finding out whether the application's table fits, and how to speak to it.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::index::indexes;
use super::{PostgresStore, Sessions, lacks_privilege};
use crate::store::adopt::{Dialect, Lacks, Shape, adopted_name};
use crate::store::table::{
    ColumnNames, Identifier, Misfit, NaiveZone, Names, Need, TableName, absent, pg_literal,
};
use crate::store::{Absent, Access, StoreError};

struct Column {
    name: String,
    sql_type: String,
    /// Of `varchar(n)`.
    length: Option<usize>,
    labels: Vec<String>,
    may_select: bool,
    may_update: bool,
    role: String,
}

const COLUMNS: &str = "
    SELECT a.attname::text AS name,
           -- With -1, `char(n)` is called bpchar: `character` would be one character long.
           format_type(a.atttypid, -1) AS sql_type,
           CASE WHEN a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND a.atttypmod > 4
                THEN a.atttypmod - 4 END AS length,
           ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = a.atttypid
                 ORDER BY e.enumsortorder) AS labels,
           has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS may_select,
           has_column_privilege(a.attrelid, a.attnum, 'UPDATE') AS may_update,
           quote_ident(current_user) AS role
    FROM pg_attribute a
    WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";

impl PostgresStore {
    pub(in crate::store) async fn open(
        sessions: Sessions,
        names: &Names,
        own_tables: bool,
        access: Access,
    ) -> Result<Self, StoreError> {
        let table = names.table.quoted();
        let columns = columns(&sessions, &names.table).await?;
        let find = |name: &Identifier| columns.iter().find(|column| column.name == name.as_str());
        let c = &names.columns;
        check_names(&table, c, Need::ToWork, &columns)?;
        let [Some(id), Some(provider_id), Some(status)] =
            [&c.id, &c.elevenlabs_voice_id, &c.status].map(find)
        else {
            unreachable!("check_names() has found them all");
        };
        let (preview_url, completed_at) = (find(&c.preview_url), find(&c.completed_at));

        check_values(&table, status, names)?;
        check_zone(&sessions, &names.zone).await?;
        let zone = pg_literal(names.zone.as_str());
        check_casts(&sessions, &table, status, names).await?;
        let written: Vec<_> = [
            (&c.status, Some(status)),
            (&c.preview_url, preview_url),
            (&c.completed_at, completed_at),
        ]
        .into_iter()
        .filter_map(|(name, column)| Some((name, column?)))
        .collect();
        // Of `created_at`, only times are read.
        let times = find(&c.created_at).filter(|column| column.sql_type.starts_with("timestamp"));
        let read = [Some(id), Some(provider_id), find(&c.user_id), times];
        let read: Vec<_> = read.into_iter().flatten().collect();
        check_privileges(&table, &read, &written, access)?;
        let completed_now = match completed_at.map(|column| column.sql_type.as_str()) {
            None => String::new(),
            Some("timestamp without time zone") => format!("(now() AT TIME ZONE {zone})"),
            Some("timestamp with time zone") => "now()".to_owned(),
            Some("text" | "character varying" | "bpchar") => {
                format!("to_char(now() AT TIME ZONE {zone}, 'YYYY-MM-DD HH24:MI:SS.US')")
            }
            Some(other) => {
                return Err(Misfit::Type {
                    table,
                    column: c.completed_at.quoted(),
                    sql_type: other.to_owned(),
                    wanted: "timestamp or timestamptz",
                }
                .into());
            }
        };
        let adopted = match own_tables {
            true => format!(
                "(SELECT adopted_at FROM voice_sync.adoptions WHERE table_name = {})",
                adopted_name(Dialect::Postgres, &names.table)
            ),
            false => "NULL::timestamptz".to_owned(),
        };
        let created_at = moment(&c.created_at, find(&c.created_at), &zone, &adopted);
        let written = moment(&c.completed_at, completed_at, &zone, "NULL::timestamptz");
        let completed_before = match own_tables {
            // A column that was added later does not know of earlier completions.
            true => format!(
                "GREATEST({written}, CASE WHEN (SELECT EXISTS (SELECT FROM voice_sync.completions))
                     THEN (SELECT c.completed_at FROM voice_sync.completions c
                           WHERE c.row_id = v.{}::text) END)",
                c.id.quoted()
            ),
            false => written,
        };
        let user = find(&c.user_id);
        let user_id = match user {
            Some(_) => format!("v.{}::text", c.user_id.quoted()),
            None => "NULL::text".to_owned(),
        };
        let absent = [
            (Absent::UserId, user),
            (Absent::PreviewUrl, preview_url),
            (Absent::CompletedAt, completed_at),
        ]
        .into_iter()
        .filter_map(|(absent, column)| column.is_none().then_some(absent))
        .collect();
        let value = |text: &str| format!("{}::{}", pg_literal(text), status.sql_type);
        Ok(Self {
            id: c.id.quoted(),
            id_type: id.sql_type.clone(),
            user_id,
            provider_id: format!("{}::text", c.elevenlabs_voice_id.quoted()),
            status: c.status.quoted(),
            preview_url: preview_url.map(|_| c.preview_url.quoted()),
            completed_at: completed_at.map(|_| c.completed_at.quoted()),
            created_at,
            completed_before,
            processing: value(&names.statuses.processing),
            completed: value(&names.statuses.completed),
            failed: value(&names.statuses.failed),
            completed_now,
            preview_room: preview_url.and_then(|column| column.length),
            absent,
            own_tables,
            table,
            sessions,
        }
        .with_plain_provider_id(provider_id))
    }

    /// Text columns are compared as they are; only other types need a cast to be read.
    fn with_plain_provider_id(mut self, column: &Column) -> Self {
        if matches!(column.sql_type.as_str(), "text" | "character varying") {
            self.provider_id
                .truncate(self.provider_id.len() - "::text".len());
        }
        self
    }
}

/// What the table lacks of what voice-sync would write to.
pub(in crate::store) async fn shape(
    sessions: &Sessions,
    names: &Names,
) -> Result<Shape, StoreError> {
    let (table, c) = (names.table.quoted(), &names.columns);
    let columns = columns(sessions, &names.table).await?;
    check_names(&table, c, Need::ToAdopt, &columns)?;
    let find = |name: &str| columns.iter().find(|column| column.name == name);
    let indexes = indexes(sessions, names).await?;
    Ok(Shape {
        lacks: Lacks::new(c, |name| find(name).is_some()),
        is_strict: false,
        // As the application has its other times.
        moment: match find(c.created_at.as_str()).map(|column| column.sql_type.as_str()) {
            Some("timestamp with time zone") => "timestamp with time zone",
            Some(_) | None => "timestamp",
        },
        // None can be made concurrently on a partitioned table: `doctor` says what to do.
        has_index: indexes.serve || !indexes.partitions.is_empty(),
    })
}

/// The columns of a table; it is there if it has any.
async fn columns(sessions: &Sessions, table: &TableName) -> Result<Vec<Column>, StoreError> {
    let mut session = sessions.begin().await?;
    let query = session.query(COLUMNS).bind(table.quoted());
    let rows = match (query.fetch_all(&mut *session).await, table.parts().0) {
        (Err(error), Some(schema)) if lacks_privilege(&error) => {
            drop(session);
            return Err(sessions.may_not_use(schema, "SELECT").await?);
        }
        (rows, _) => rows?,
    };
    session.keep().await?;
    match rows.is_empty() {
        true => Err(Misfit::NoTable {
            table: table.quoted(),
        }
        .into()),
        false => Ok(rows.into_iter().map(column).collect::<Result<_, _>>()?),
    }
}

fn check_names(
    table: &str,
    names: &ColumnNames,
    need: Need,
    columns: &[Column],
) -> Result<(), Misfit> {
    let there: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    absent(table, names, need, &there, |one, other| one == other)
}

fn column(row: PgRow) -> Result<Column, sqlx::Error> {
    Ok(Column {
        name: row.try_get("name")?,
        sql_type: row.try_get("sql_type")?,
        length: row
            .try_get::<Option<i32>, _>("length")?
            .and_then(|length| usize::try_from(length).ok()),
        labels: row.try_get("labels")?,
        may_select: row.try_get("may_select")?,
        may_update: row.try_get("may_update")?,
        role: row.try_get("role")?,
    })
}

/// A column's time on `v`, but none before `earliest`; if the column has no time zone, the time is one of `zone`.
/// PostgreSQL's infinities are no times that an age could count from.
fn moment(name: &Identifier, column: Option<&Column>, zone: &str, earliest: &str) -> String {
    let quoted = name.quoted();
    let read = match column.map(|column| column.sql_type.as_str()) {
        Some("timestamp without time zone") => format!("v.{quoted} AT TIME ZONE {zone}"),
        Some("timestamp with time zone") => format!("v.{quoted}"),
        Some(_) | None => return "NULL::timestamptz".to_owned(),
    };
    format!("(CASE WHEN isfinite(v.{quoted}) THEN GREATEST({read}, {earliest}) END)")
}

fn check_values(table: &str, status: &Column, names: &Names) -> Result<(), Misfit> {
    let column = || names.columns.status.quoted();
    for value in names.statuses.all() {
        if !status.labels.is_empty() && !status.labels.iter().any(|label| label == value) {
            return Err(Misfit::Label {
                table: table.to_owned(),
                column: column(),
                value: value.to_owned(),
                labels: status.labels.join(", "),
            });
        }
        if let Some(room) = status.length.filter(|room| value.chars().count() > *room) {
            return Err(Misfit::NoRoom {
                table: table.to_owned(),
                column: column(),
                value: value.to_owned(),
                room,
            });
        }
    }
    Ok(())
}

/// UTC is always known.
async fn check_zone(sessions: &Sessions, zone: &NaiveZone) -> Result<(), StoreError> {
    if zone.is_utc() {
        return Ok(());
    }
    let mut session = sessions.begin().await?;
    let query = session
        .query("SELECT now() AT TIME ZONE $1")
        .bind(zone.as_str());
    match query.execute(&mut *session).await.map_err(StoreError::from) {
        Err(StoreError::Refused(_)) => Err(StoreError::Config(format!(
            "PostgreSQL knows no time zone {} (--naive-timezone); its view pg_timezone_names lists them",
            zone.as_str()
        ))),
        Err(error) => Err(error),
        Ok(_) => session.keep().await,
    }
}

/// Words fit into enums and texts, as [`check_values`] has seen. Of another type, each must be a value.
async fn check_casts(
    sessions: &Sessions,
    table: &str,
    status: &Column,
    names: &Names,
) -> Result<(), StoreError> {
    let is_text = matches!(
        status.sql_type.as_str(),
        "text" | "character varying" | "bpchar"
    );
    if is_text || !status.labels.is_empty() {
        return Ok(());
    }
    let sql_type = &status.sql_type;
    let values = names.statuses.all();
    let values = values.map(|value| format!("{}::{sql_type}", pg_literal(value)));
    let mut session = sessions.begin().await?;
    let query = session.query(AssertSqlSafe(format!("SELECT {}", values.join(", "))));
    match query.execute(&mut *session).await.map_err(StoreError::from) {
        Err(StoreError::Refused(_)) => Err(Misfit::Type {
            table: table.to_owned(),
            column: names.columns.status.quoted(),
            sql_type: sql_type.clone(),
            wanted: "one that has the values of --status-values",
        }
        .into()),
        Err(error) => Err(error),
        Ok(_) => session.keep().await,
    }
}

/// Before anything is asked: what a role may not do would otherwise show at the first transition.
fn check_privileges(
    table: &str,
    read: &[&Column],
    written: &[(&Identifier, &Column)],
    access: Access,
) -> Result<(), Misfit> {
    let role = &read[0].role;
    let may_read = read
        .iter()
        .copied()
        .chain(written.iter().map(|(_, column)| *column))
        .all(|c| c.may_select);
    let may_write = access == Access::ReadOnly || written.iter().all(|(_, c)| c.may_update);
    let reading = (!may_read).then(|| format!("GRANT SELECT ON {table} TO {role};"));
    let writing = (!may_write).then(|| {
        let columns: Vec<_> = written.iter().map(|(name, _)| name.quoted()).collect();
        format!(
            "GRANT UPDATE ({}) ON {table} TO {role};",
            columns.join(", ")
        )
    });
    let grants: Vec<_> = reading.into_iter().chain(writing).collect();
    match grants.is_empty() {
        true => Ok(()),
        false => Err(Misfit::Privilege {
            role: role.clone(),
            table: table.to_owned(),
            grant: grants.join(" "),
        }),
    }
}
