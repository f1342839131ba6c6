//! Finding out whether the application's table fits, and how to speak to it.

use sqlx::Row;
use sqlx::postgres::PgRow;
use tracing::warn;

use super::{PostgresStore, Sessions};
use crate::store::table::{Identifier, Misfit, Names, absent, literal};
use crate::store::{Access, StoreError};

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
        let mut session = sessions.begin().await?;
        let columns: Vec<Column> = session
            .query(COLUMNS)
            .bind(&table)
            .fetch_all(&mut *session)
            .await?
            .into_iter()
            .map(column)
            .collect::<Result<_, _>>()?;
        session.keep().await?;
        if columns.is_empty() {
            return Err(Misfit::NoTable { table }.into());
        }
        let find = |name: &Identifier| columns.iter().find(|column| column.name == name.as_str());
        let c = &names.columns;
        let needed = [
            &c.id,
            &c.elevenlabs_voice_id,
            &c.status,
            &c.preview_url,
            &c.completed_at,
        ];
        let there: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        absent(&table, c, &there, |one, other| one == other)?;
        let [
            Some(id),
            Some(provider_id),
            Some(status),
            Some(preview_url),
            Some(completed_at),
        ] = needed.map(find)
        else {
            unreachable!("absent() has found them all");
        };

        check_values(&table, status, names)?;
        let written = [
            (&c.status, status),
            (&c.preview_url, preview_url),
            (&c.completed_at, completed_at),
        ];
        check_privileges(&table, [id, provider_id], written, access)?;
        let completed_now = match completed_at.sql_type.as_str() {
            "timestamp without time zone" => "(now() AT TIME ZONE 'UTC')",
            "timestamp with time zone" => "now()",
            "text" | "character varying" | "bpchar" => {
                "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
            }
            _ => {
                return Err(Misfit::Type {
                    table,
                    column: c.completed_at.quoted(),
                    sql_type: completed_at.sql_type.clone(),
                    wanted: "timestamp or timestamptz",
                }
                .into());
            }
        };
        let created_at = moment(&c.created_at, find(&c.created_at));
        let completed_before = moment(&c.completed_at, Some(completed_at));
        let user_id = match find(&c.user_id) {
            Some(_) => format!("v.{}::text", c.user_id.quoted()),
            None => {
                warn!(
                    column = c.user_id.as_str(),
                    "the table has no such column; events carry no user"
                );
                "NULL::text".to_owned()
            }
        };
        let value = |text: &str| format!("{}::{}", literal(text), status.sql_type);
        Ok(Self {
            id: c.id.quoted(),
            id_type: id.sql_type.clone(),
            user_id,
            provider_id: format!("{}::text", c.elevenlabs_voice_id.quoted()),
            status: c.status.quoted(),
            preview_url: c.preview_url.quoted(),
            completed_at: c.completed_at.quoted(),
            created_at,
            completed_before,
            processing: value(&names.statuses.processing),
            completed: value(&names.statuses.completed),
            failed: value(&names.statuses.failed),
            completed_now,
            preview_room: preview_url.length,
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

/// A column's time on `v`. PostgreSQL's infinities are no times that an age could count from.
fn moment(name: &Identifier, column: Option<&Column>) -> String {
    let quoted = name.quoted();
    let read = match column.map(|column| column.sql_type.as_str()) {
        Some("timestamp without time zone") => format!("v.{quoted} AT TIME ZONE 'UTC'"),
        Some("timestamp with time zone") => format!("v.{quoted}"),
        Some(_) | None => return "NULL::timestamptz".to_owned(),
    };
    format!("(CASE WHEN isfinite(v.{quoted}) THEN {read} END)")
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

/// Before anything is asked: what a role may not do would otherwise show at the first transition.
fn check_privileges(
    table: &str,
    read: [&Column; 2],
    written: [(&Identifier, &Column); 3],
    access: Access,
) -> Result<(), Misfit> {
    let role = &written[0].1.role;
    let may_read = read
        .into_iter()
        .chain(written.map(|(_, column)| column))
        .all(|c| c.may_select);
    let may_write = access == Access::ReadOnly || written.iter().all(|(_, c)| c.may_update);
    let grant = match (may_read, may_write) {
        (true, true) => return Ok(()),
        (false, _) => format!("GRANT SELECT ON {table} TO {role};"),
        (true, false) => {
            let columns = written.map(|(name, _)| name.quoted()).join(", ");
            format!("GRANT UPDATE ({columns}) ON {table} TO {role};")
        }
    };
    Err(Misfit::Privilege {
        role: role.clone(),
        table: table.to_owned(),
        grant,
    })
}
