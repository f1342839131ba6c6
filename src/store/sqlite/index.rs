//! The index for the voices in processing.

use sqlx::{Row, SqlitePool};

use crate::store::StoreError;
use crate::store::table::{Names, literal};

/// Whether an index leads to the voices in processing.
pub(crate) async fn is_indexed(pool: &SqlitePool, names: &Names) -> Result<bool, StoreError> {
    const INDEXES: &str = "
        SELECT i.name AS first, l.partial AS is_partial, s.sql AS statement
        FROM pragma_index_list($1) l, pragma_index_info(l.name) i
        LEFT JOIN sqlite_schema s ON s.type = 'index' AND s.name = l.name
        WHERE i.seqno = 0";
    let rows = sqlx::query(INDEXES)
        .bind(names.table.parts().1)
        .fetch_all(pool)
        .await?;
    for row in rows {
        let (first, statement): (Option<String>, Option<String>) =
            (row.try_get("first")?, row.try_get("statement")?);
        let serves = match row.try_get("is_partial")? {
            true => statement.is_some_and(|statement| is_of_processing(&statement, names)),
            false => {
                first.is_some_and(|first| first.eq_ignore_ascii_case(names.columns.status.as_str()))
            }
        };
        if serves {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a partial index contains only the voices in processing. SQLite stores its condition as it was written.
fn is_of_processing(statement: &str, names: &Names) -> bool {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let statement = one_line(statement.trim_end_matches([';', ' ', '\n']));
    let ours = format!(
        " WHERE {} = {}",
        names.columns.status.quoted(),
        literal(&names.statuses.processing)
    );
    if statement.ends_with(&one_line(&ours)) {
        return true;
    }
    let Some(at) = statement.to_ascii_lowercase().rfind(" where ") else {
        return false;
    };
    let condition = statement[at + " where ".len()..].trim_matches([' ', '(', ')', ';']);
    let Some((column, value)) = condition.split_once('=') else {
        return false;
    };
    let column = column.trim_matches([' ', '"', '`', '[', ']']);
    let value = value.trim_start_matches('=').trim();
    column.eq_ignore_ascii_case(names.columns.status.as_str())
        && value == literal(&names.statuses.processing)
}
