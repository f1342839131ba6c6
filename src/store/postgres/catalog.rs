//! Checks that the application's table is suitable, and how to access it.

use super::Connections;
use super::index::indexes;
use crate::store::adopt::{Lacks, TableShape, adopted_name};
use crate::store::args::Args;
use crate::store::dialect::Dialect;
use crate::store::row::Row;
use crate::store::table::{
    ColumnNames, Identifier, MissingColumn, Names, Need, SchemaError, TableName, check_columns,
    pg_literal,
};
use crate::store::table_sql::{KeyForm, TableSql};
use crate::store::zone::NaiveZone;
use crate::store::{Access, StoreError};

struct Column {
    name: String,
    sql_type: String,
    /// The length `n` of `varchar(n)`.
    length: Option<usize>,
    labels: Vec<String>,
    may_select: bool,
    may_update: bool,
    role: String,
    /// Whether the table is an ordinary one, not a view or a partitioned table, and the role may read `xmin`. A role
    /// with grants on columns needs one on this column too.
    has_row_versions: bool,
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
           quote_ident(current_user) AS role,
           (SELECT CASE WHEN c.relkind = 'r' THEN has_column_privilege(c.oid, 'xmin', 'SELECT') ELSE FALSE END
            FROM pg_class c WHERE c.oid = a.attrelid) AS has_row_versions
    FROM pg_attribute a
    WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";

/// Reads the catalog.
pub(in crate::store) async fn table_sql(
    connections: &Connections,
    names: &Names,
    has_own_tables: bool,
    access: Access,
) -> Result<TableSql, StoreError> {
    let table = names.table.quoted();
    let columns = columns(connections, &names.table).await?;
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
    check_zone(connections, &names.zone).await?;
    let zone = pg_literal(names.zone.as_str());
    check_casts(connections, &table, status, names).await?;
    let written: Vec<_> = [
        (&c.status, Some(status)),
        (&c.preview_url, preview_url),
        (&c.completed_at, completed_at),
    ]
    .into_iter()
    .filter_map(|(name, column)| Some((name, column?)))
    .collect();
    // Of `created_at`, only timestamps can be read.
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
            return Err(SchemaError::Type {
                table,
                column: c.completed_at.quoted(),
                sql_type: other.to_owned(),
                wanted: "timestamp or timestamptz",
            }
            .into());
        }
    };
    let adopted = match has_own_tables {
        true => format!(
            "(SELECT adopted_at FROM voice_sync.adoptions WHERE table_name = {})",
            adopted_name(Dialect::Postgres, &names.table)
        ),
        false => "NULL::timestamptz".to_owned(),
    };
    let created_at = moment(&c.created_at, find(&c.created_at), &zone, &adopted);
    let written = moment(&c.completed_at, completed_at, &zone, "NULL::timestamptz");
    let completed_before = match has_own_tables {
        // A column that was added later does not contain earlier completions.
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
    let missing_columns = [
        (MissingColumn::UserId, user),
        (MissingColumn::PreviewUrl, preview_url),
        (MissingColumn::CompletedAt, completed_at),
    ];
    let missing_columns = missing_columns
        .into_iter()
        .filter_map(|(name, column)| column.is_none().then_some(name))
        .collect();
    let value = |text: &str| format!("{}::{}", pg_literal(text), status.sql_type);
    // Text columns are compared without a cast. Other types need one to be read.
    let cast = match provider_id.sql_type.as_str() {
        "text" | "character varying" => "",
        _ => "::text",
    };
    let provider_id = format!("v.{}{cast}", c.elevenlabs_voice_id.quoted());
    Ok(TableSql {
        dialect: Dialect::Postgres,
        id: c.id.quoted(),
        position: c.id.quoted(),
        id_type: id.sql_type.clone(),
        id_form: KeyForm::Plain,
        returned: format!(
            "v.{}::text AS row_id, {provider_id} AS provider_id, {user_id} AS user_id",
            c.id.quoted()
        ),
        user_id,
        user_id_form: KeyForm::Plain,
        provider_key: provider_id.clone(),
        provider_id,
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
        has_row_versions: id.has_row_versions,
        missing_columns,
        has_own_tables,
        table,
    })
}

/// The columns that voice-sync would write to and that the table does not have.
pub(in crate::store) async fn shape(
    connections: &Connections,
    names: &Names,
) -> Result<TableShape, StoreError> {
    let (table, c) = (names.table.quoted(), &names.columns);
    let columns = columns(connections, &names.table).await?;
    check_names(&table, c, Need::ToAdopt, &columns)?;
    let find = |name: &str| columns.iter().find(|column| column.name == name);
    let indexes = indexes(connections, names).await?;
    Ok(TableShape {
        lacks: Lacks::new(c, |name| find(name).is_some()),
        is_strict: false,
        // Same type as the application's other times.
        moment: match find(c.created_at.as_str()).map(|column| column.sql_type.as_str()) {
            Some("timestamp with time zone") => "timestamp with time zone",
            Some(_) | None => "timestamp",
        },
        // An index cannot be created concurrently on a partitioned table: `doctor` says what to do.
        has_index: indexes.serve || !indexes.partitions.is_empty(),
    })
}

/// The columns of a table. The table exists if it has any.
async fn columns(connections: &Connections, table: &TableName) -> Result<Vec<Column>, StoreError> {
    let mut args = Args::new(Dialect::Postgres);
    args.bind(table.quoted());
    let rows = match (
        connections.fetch_all(COLUMNS.to_owned(), args).await,
        table.parts().0,
    ) {
        (Err(StoreError::Privilege(_)), Some(schema)) => {
            return Err(connections.may_not_use(schema, "SELECT").await?);
        }
        (rows, _) => rows?,
    };
    match rows.is_empty() {
        true => Err(SchemaError::NoTable {
            table: table.quoted(),
        }
        .into()),
        false => rows.iter().map(column).collect(),
    }
}

fn check_names(
    table: &str,
    names: &ColumnNames,
    need: Need,
    columns: &[Column],
) -> Result<(), SchemaError> {
    let there: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    check_columns(table, names, need, &there, |one, other| one == other)
}

fn column(row: &Row) -> Result<Column, StoreError> {
    let length: Option<i64> = row.get_optional("length")?;
    Ok(Column {
        name: row.get("name")?,
        sql_type: row.get("sql_type")?,
        length: length.and_then(|length| usize::try_from(length).ok()),
        labels: row.texts("labels")?,
        may_select: row.get("may_select")?,
        may_update: row.get("may_update")?,
        role: row.get("role")?,
        has_row_versions: row.get("has_row_versions")?,
    })
}

/// A column's time on `v`, but not before `earliest`. A column without a time zone is read in `zone`. PostgreSQL's
/// infinities count as no time.
fn moment(name: &Identifier, column: Option<&Column>, zone: &str, earliest: &str) -> String {
    let quoted = name.quoted();
    let read = match column.map(|column| column.sql_type.as_str()) {
        Some("timestamp without time zone") => format!("v.{quoted} AT TIME ZONE {zone}"),
        Some("timestamp with time zone") => format!("v.{quoted}"),
        Some(_) | None => return "NULL::timestamptz".to_owned(),
    };
    format!("(CASE WHEN isfinite(v.{quoted}) THEN GREATEST({read}, {earliest}) END)")
}

fn check_values(table: &str, status: &Column, names: &Names) -> Result<(), SchemaError> {
    let column = || names.columns.status.quoted();
    for value in names.statuses.all() {
        if !status.labels.is_empty() && !status.labels.iter().any(|label| label == value) {
            return Err(SchemaError::Label {
                table: table.to_owned(),
                column: column(),
                value: value.to_owned(),
                labels: status.labels.join(", "),
            });
        }
        if let Some(room) = status.length.filter(|room| value.chars().count() > *room) {
            return Err(SchemaError::NoRoom {
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
async fn check_zone(connections: &Connections, zone: &NaiveZone) -> Result<(), StoreError> {
    if zone.is_utc() {
        return Ok(());
    }
    let mut args = Args::new(Dialect::Postgres);
    let sql = format!("SELECT now() AT TIME ZONE {}", args.bind(zone.as_str()));
    match connections.execute(sql, args).await {
        Err(StoreError::Refused(_)) => Err(StoreError::Config(format!(
            "PostgreSQL knows no time zone {} (--naive-timezone); the view pg_timezone_names lists the names",
            zone.as_str()
        ))),
        checked => checked.map(drop),
    }
}

/// Statuses fit into enums and texts, as [`check_values`] has checked. For another type, each must be a valid value.
async fn check_casts(
    connections: &Connections,
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
    let sql = format!("SELECT {}", values.join(", "));
    match connections.execute(sql, Args::new(Dialect::Postgres)).await {
        Err(StoreError::Refused(_)) => Err(SchemaError::Type {
            table: table.to_owned(),
            column: names.columns.status.quoted(),
            sql_type: sql_type.clone(),
            wanted: "one that has the values of --status-values",
        }
        .into()),
        checked => checked.map(drop),
    }
}

/// Checks privileges before anything is looked up: a missing one would otherwise appear only at the first transition.
fn check_privileges(
    table: &str,
    read: &[&Column],
    written: &[(&Identifier, &Column)],
    access: Access,
) -> Result<(), SchemaError> {
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
        false => Err(SchemaError::Privilege {
            role: role.clone(),
            table: table.to_owned(),
            grant: grants.join(" "),
        }),
    }
}
