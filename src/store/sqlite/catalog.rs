//! Checks that the application's table is suitable, and how to access it.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqlitePool};

use super::index::is_indexed;
use crate::store::StoreError;
use crate::store::adopt::{Lacks, TableShape, adopted_name};
use crate::store::dialect::Dialect;
use crate::store::table::{
    ColumnNames, Identifier, MissingColumn, Names, Need, SchemaError, TableName, check_columns,
    literal,
};
use crate::store::table_sql::{KeyForm, TableSql};

/// SQLite's row numbers: <https://www.sqlite.org/rowidtable.html>.
const ROW_ID: &str = "_rowid_";

struct Column {
    name: String,
    declared: String,
}

/// Reads the catalog.
pub(in crate::store) async fn table_sql(
    pool: &SqlitePool,
    names: &Names,
    has_own_tables: bool,
) -> Result<TableSql, StoreError> {
    if !names.zone.is_utc() {
        return Err(StoreError::Config(
            "SQLite has no time zones, so --naive-timezone works with PostgreSQL only; let the application write UTC"
                .to_owned(),
        ));
    }
    let table = names.table.quoted();
    let columns = columns(pool, &names.table).await?;
    // SQLite compares column names without regard to ASCII case.
    let find = |name: &Identifier| {
        columns
            .iter()
            .find(|column| column.name.eq_ignore_ascii_case(name.as_str()))
    };
    let c = &names.columns;
    check_names(&table, c, Need::ToWork, &columns)?;
    let form = |name: &Identifier| match find(name) {
        Some(column) if length(&column.declared) == Some(32) => KeyForm::BareUuid,
        Some(_) | None => KeyForm::Plain,
    };
    let moment_of = |name: &Identifier| match find(name) {
        Some(_) => moment(&format!("CAST(v.{} AS TEXT)", name.quoted())),
        None => "NULL".to_owned(),
    };
    let id = c.id.quoted();
    let (mut created_at, mut completed_before) =
        (moment_of(&c.created_at), moment_of(&c.completed_at));
    if has_own_tables {
        let adopted = format!(
            "(SELECT adopted_at FROM voice_sync_adoptions WHERE table_name = {})",
            adopted_name(Dialect::Sqlite, &names.table)
        );
        created_at = format!("max({created_at}, COALESCE({adopted}, 0))");
        // A column that was added later does not contain earlier completions.
        completed_before = format!(
            "COALESCE({completed_before}, (SELECT c.completed_at FROM voice_sync_completions c
                                           WHERE c.row_id = CAST(v.{id} AS TEXT)))"
        );
    }
    let user_id = match find(&c.user_id) {
        Some(_) => [
            format!("CAST(v.{} AS TEXT)", c.user_id.quoted()),
            format!("CAST({} AS TEXT)", c.user_id.quoted()),
        ],
        None => ["NULL", "NULL"].map(str::to_owned),
    };
    let [user_id, returned_user] = user_id;
    let provider_id = c.elevenlabs_voice_id.quoted();
    let missing_columns = [
        MissingColumn::UserId,
        MissingColumn::PreviewUrl,
        MissingColumn::CompletedAt,
    ];
    let missing_columns = missing_columns
        .into_iter()
        .filter(|column| find(column.name(c)).is_none())
        .collect();
    let position = match goes_by_row_ids(pool, names, &columns).await? {
        true => ROW_ID.to_owned(),
        false => id.clone(),
    };
    Ok(TableSql {
        dialect: Dialect::Sqlite,
        position,
        id_type: "text".to_owned(),
        id_form: form(&c.id),
        user_id,
        user_id_form: form(&c.user_id),
        returned: format!(
            "CAST({id} AS TEXT) AS row_id, CAST({provider_id} AS TEXT) AS provider_id, {returned_user} AS user_id"
        ),
        provider_id: format!("CAST(v.{provider_id} AS TEXT)"),
        provider_key: format!("v.{provider_id}"),
        id,
        status: c.status.quoted(),
        preview_url: find(&c.preview_url).map(|_| c.preview_url.quoted()),
        completed_at: find(&c.completed_at).map(|_| c.completed_at.quoted()),
        completed_before,
        created_at,
        processing: literal(&names.statuses.processing),
        completed: literal(&names.statuses.completed),
        failed: literal(&names.statuses.failed),
        // SQLAlchemy writes six decimals of a second; SQLite's clock has three.
        completed_now: "strftime('%Y-%m-%d %H:%M:%f000', 'now')".to_owned(),
        missing_columns,
        preview_room: find(&c.preview_url).and_then(|column| length(&column.declared)),
        has_row_versions: false,
        has_own_tables,
        table,
    })
}

/// A stored time in milliseconds since 1970. It may be SQLAlchemy's text, ISO 8601 with or without a time zone, Unix
/// seconds or milliseconds.
fn moment(text: &str) -> String {
    format!(
        "CASE WHEN {text} GLOB '[0-9]*' AND {text} NOT GLOB '*[^0-9]*'
              THEN CAST({text} AS INTEGER) * CASE WHEN length({text}) > 11 THEN 1 ELSE 1000 END
              ELSE CAST(unixepoch({text}, 'subsec') * 1000 AS INTEGER) END"
    )
}

/// The columns that voice-sync would write to and that the table does not have.
pub(in crate::store) async fn shape(
    pool: &SqlitePool,
    names: &Names,
) -> Result<TableShape, StoreError> {
    let c = &names.columns;
    let columns = columns(pool, &names.table).await?;
    check_names(&names.table.quoted(), c, Need::ToAdopt, &columns)?;
    Ok(TableShape {
        lacks: Lacks::new(c, |name| {
            columns
                .iter()
                .any(|column| column.name.eq_ignore_ascii_case(name))
        }),
        is_strict: is_strict(pool, &names.table).await?,
        moment: "DATETIME",
        has_index: is_indexed(pool, names).await?,
    })
}

async fn is_strict(pool: &SqlitePool, table: &TableName) -> Result<bool, StoreError> {
    let strict = "SELECT strict FROM pragma_table_list WHERE schema = $1 COLLATE NOCASE
                  AND name = $2 COLLATE NOCASE";
    let (schema, name) = table.parts();
    let strict = sqlx::query_scalar(strict)
        .bind(schema.unwrap_or("main"))
        .bind(name)
        .fetch_optional(pool)
        .await?;
    Ok(strict.unwrap_or(false))
}

/// Whether to go through rows in the order of [`ROW_ID`]. Views and tables WITHOUT ROWID have no row numbers, and a
/// column of that name hides them. A partial index on keys, as `migrate --adopt` makes it, is in the order of the
/// keys.
async fn goes_by_row_ids(
    pool: &SqlitePool,
    names: &Names,
    columns: &[Column],
) -> Result<bool, StoreError> {
    let by_row_ids = "
        SELECT type = 'table' AND NOT wr AND NOT EXISTS (
                   SELECT 1 FROM pragma_index_list($2) l JOIN pragma_index_info(l.name) i
                   WHERE l.partial AND i.seqno = 0 AND i.name = $3 COLLATE NOCASE)
        FROM pragma_table_list WHERE schema = $1 COLLATE NOCASE AND name = $2 COLLATE NOCASE";
    let (schema, name) = names.table.parts();
    let by_row_ids = sqlx::query_scalar(by_row_ids)
        .bind(schema.unwrap_or("main"))
        .bind(name)
        .bind(names.columns.id.as_str())
        .fetch_optional(pool)
        .await?;
    let is_hidden = columns
        .iter()
        .any(|column| column.name.eq_ignore_ascii_case(ROW_ID));
    Ok(by_row_ids.unwrap_or(false) && !is_hidden)
}

/// The columns of a table. The table exists if it has any.
async fn columns(pool: &SqlitePool, table: &TableName) -> Result<Vec<Column>, StoreError> {
    let (schema, name) = table.parts();
    let rows = sqlx::query("SELECT name, type FROM pragma_table_info($1, $2)")
        .bind(name)
        .bind(schema.unwrap_or("main"))
        .fetch_all(pool)
        .await?;
    let column = |row: SqliteRow| {
        Ok::<_, sqlx::Error>(Column {
            name: row.try_get("name")?,
            declared: row.try_get::<String, _>("type")?.to_ascii_uppercase(),
        })
    };
    match rows.is_empty() {
        true => Err(SchemaError::NoTable {
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
) -> Result<(), SchemaError> {
    let all = [
        &names.id,
        &names.user_id,
        &names.elevenlabs_voice_id,
        &names.status,
        &names.preview_url,
        &names.created_at,
        &names.completed_at,
    ];
    for (at, name) in all.iter().enumerate() {
        let same = |other: &&Identifier| other.as_str().eq_ignore_ascii_case(name.as_str());
        if all[..at].iter().any(same) {
            return Err(SchemaError::Shared {
                table: table.to_owned(),
                column: name.quoted(),
            });
        }
    }
    let there: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    check_columns(table, names, need, &there, str::eq_ignore_ascii_case)
}

/// The `n` of a declared type such as `VARCHAR(n)`.
fn length(declared: &str) -> Option<usize> {
    let (name, rest) = declared.split_once('(')?;
    let is_text = name.contains("CHAR") || name.contains("TEXT");
    rest.strip_suffix(')')?
        .trim()
        .parse()
        .ok()
        .filter(|_| is_text)
}

#[cfg(test)]
mod tests {
    use sqlx::AssertSqlSafe;

    use super::*;

    #[tokio::test]
    async fn parses_every_form_of_a_stored_time() {
        let pool = SqlitePool::connect("sqlite::memory:").await.expect("opens");
        let read = async |text: &str| {
            let sql = AssertSqlSafe(format!("SELECT {}", moment("$1")));
            let read: Option<i64> = sqlx::query_scalar(sql)
                .bind(text)
                .fetch_one(&pool)
                .await
                .expect("reads");
            read
        };
        for text in [
            "2026-11-02 08:00:00.000000",
            "2026-11-02 08:00:00",
            "2026-11-02T08:00:00",
            "2026-11-02T08:00:00Z",
            "2026-11-02 09:00:00+01:00",
            "2026-11-02T09:00:00.000+01:00",
            "1793606400",
            "1793606400000",
        ] {
            assert_eq!(read(text).await, Some(1_793_606_400_000), "{text}");
        }
        for text in ["", "yesterday", "2026-13-02 08:00:00"] {
            assert_eq!(read(text).await, None, "{text:?}");
        }
    }

    #[test]
    fn key_of_32_characters_is_read_as_a_uuid_without_dashes() {
        assert_eq!(length("CHAR(32)"), Some(32));
        assert_eq!(length("VARCHAR( 1024 )"), Some(1024));
        assert_eq!(length("TEXT"), None);
        assert_eq!(length("NUMERIC(10)"), None);
        let bare = "0b8f1c527f0e4a6e9f7a3a4a4c1f1a11";
        assert_eq!(
            KeyForm::BareUuid.read(bare),
            "0b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11"
        );
        assert_eq!(KeyForm::BareUuid.read("seven"), "seven");
        assert_eq!(KeyForm::Plain.read(bare), bare);
    }
}
