//! The index that serves the voices in processing.

use sqlx::{AssertSqlSafe, Executor, Row};

use super::Sessions;
use crate::store::StoreError;
use crate::store::adopt::index_name;
use crate::store::table::Names;

/// About how many rows a table has, and whether an index leads to those in processing.
pub(super) async fn serves(sessions: &Sessions, names: &Names) -> Result<(u64, bool), StoreError> {
    const SERVES: &str = "
        -- What was never counted is guessed at by its size.
        SELECT GREATEST(c.reltuples::bigint, pg_relation_size(c.oid) / 200) AS size,
               EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
                       WHERE i.indrelid = c.oid AND i.indisvalid AND a.attname = $2
                         AND (i.indkey[0] = a.attnum
                              OR position(quote_ident($2) IN pg_get_expr(i.indpred, c.oid)) > 0)
                      ) AS serves
        FROM pg_class c WHERE c.oid = to_regclass($1)";
    let mut session = sessions.begin().await?;
    let row = session
        .query(SERVES)
        .bind(names.table.quoted())
        .bind(names.columns.status.as_str())
        .fetch_one(&mut *session)
        .await?;
    session.keep().await?;
    let size: i64 = row.try_get("size")?;
    Ok((size.unsigned_abs(), row.try_get("serves")?))
}

/// Makes the index without keeping anybody from writing. What an interrupted attempt left behind,
/// which serves nobody and costs every write, is removed first.
pub(in crate::store) async fn make_index(
    sessions: &Sessions,
    names: &Names,
    statement: &str,
) -> Result<(), StoreError> {
    const LEFT_BEHIND: &str = "
        SELECT format('DROP INDEX CONCURRENTLY IF EXISTS %s', i.indexrelid::regclass)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = to_regclass($1) AND c.relname = $2 AND NOT i.indisvalid
          AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p
                          WHERE p.index_relid = i.indexrelid)";
    let mut session = sessions.begin().await?;
    let left_behind = session
        .query(LEFT_BEHIND)
        .bind(names.table.quoted())
        .bind(index_name(names.table.parts().1))
        .fetch_optional(&mut *session)
        .await?;
    session.keep().await?;
    let removal: Option<String> = left_behind.map(|row| row.try_get(0)).transpose()?;
    // None of these may stand in a transaction. Behind a pooler, a setting would stay with the session.
    let mut connection = sessions.acquire().await?;
    let unhurried = (!sessions.is_pooled())
        .then_some("SELECT set_config('statement_timeout', '0', FALSE), set_config('lock_timeout', '0', FALSE)");
    for sql in unhurried
        .into_iter()
        .chain(removal.as_deref())
        .chain([statement])
    {
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
            .await?;
    }
    // It has settings that others should not find.
    drop(connection.detach());
    match serves(sessions, names).await? {
        (_, true) => Ok(()),
        (_, false) => Err(StoreError::Config(format!(
            "an index with the name {:?} is there, and does not lead to the voices in processing; rename it",
            index_name(names.table.parts().1)
        ))),
    }
}
