//! The index that serves the voices in processing.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, Row};
use tracing::info;

use super::Sessions;
use crate::store::StoreError;
use crate::store::adopt::index_name;
use crate::store::table::Names;

/// Between two looks at whether another process has made the index.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The tables that rows are in, and how they lead to those in processing.
pub(super) struct Indexes {
    /// About how many there are.
    pub(super) rows: u64,
    /// An index leads to those in processing, in each partition where there are any.
    pub(super) serve: bool,
    /// Partitions without one. PostgreSQL makes none concurrently on the whole.
    pub(super) partitions: Vec<String>,
}

/// Which indexes there are.
pub(super) async fn indexes(sessions: &Sessions, names: &Names) -> Result<Indexes, StoreError> {
    // An index leads to the voices in processing where their status comes first, or where it has no
    // others. Of a condition, PostgreSQL keeps the meaning, which it prints in one of these forms.
    const INDEXES: &str = "
        SELECT t.oid::regclass::text AS name, c.relkind = 'p' AS is_partition,
               -- What was never counted is guessed at by its size.
               GREATEST(t.reltuples::bigint, pg_relation_size(t.oid) / 200) AS size,
               EXISTS (SELECT FROM pg_index i
                       JOIN pg_class x ON x.oid = i.indexrelid
                       JOIN pg_am m ON m.oid = x.relam AND m.amname IN ('btree', 'hash')
                       JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = $2
                       WHERE i.indrelid = t.oid AND i.indisvalid
                         AND CASE WHEN i.indpred IS NULL THEN i.indkey[0] = a.attnum
                             -- A setting decides whether E stands before a text with backslashes.
                             ELSE replace(pg_get_expr(i.indpred, i.indrelid), ' E''', ' ''') IN (
                                 format('(%I = %s::%s)', a.attname, given.text, format_type(a.atttypid, -1)),
                                 format('((%I)::text = %s::text)', a.attname, given.text),
                                 format('((%I)::text = (%s::character varying)::text)', a.attname, given.text),
                                 format('(%I = %s)', a.attname, $3::text))
                             END) AS serves
        FROM (SELECT ltrim(quote_literal($3::text), 'E') AS text) given, pg_class c
        JOIN pg_class t ON t.oid = c.oid AND c.relkind <> 'p'
             OR c.relkind = 'p' AND t.relkind = 'r'
                AND t.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf)
        WHERE c.oid = to_regclass($1)
        ORDER BY name";
    let mut session = sessions.begin().await?;
    let rows = session
        .query(INDEXES)
        .bind(names.table.quoted())
        .bind(names.columns.status.as_str())
        .bind(&names.statuses.processing)
        .fetch_all(&mut *session)
        .await?;
    session.keep().await?;
    let mut found = Indexes {
        rows: 0,
        serve: true,
        partitions: Vec::new(),
    };
    for row in rows {
        found.rows += row.try_get::<i64, _>("size")?.unsigned_abs();
        let (serves, is_partition): (bool, bool) =
            (row.try_get("serves")?, row.try_get("is_partition")?);
        found.serve &= serves;
        if is_partition && !serves {
            found.partitions.push(row.try_get("name")?);
        }
    }
    Ok(found)
}

/// The statement that removes what an interrupted attempt to make the index left behind.
pub(super) async fn drop_left_behind(
    sessions: &Sessions,
    names: &Names,
) -> Result<Option<String>, StoreError> {
    const LEFT_BEHIND: &str = "
        SELECT format('DROP INDEX CONCURRENTLY IF EXISTS %s', i.indexrelid::regclass)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = to_regclass($1) AND c.relname = $2 AND NOT i.indisvalid
          AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p
                          WHERE p.relid = i.indrelid)";
    let mut session = sessions.begin().await?;
    let left_behind = session
        .query(LEFT_BEHIND)
        .bind(names.table.quoted())
        .bind(index_name(names.table.parts().1))
        .fetch_optional(&mut *session)
        .await?;
    session.keep().await?;
    Ok(left_behind.map(|row| row.try_get(0)).transpose()?)
}

/// Makes the index without keeping anybody from writing. What an interrupted attempt left behind,
/// which serves nobody and costs every write, is removed first.
pub(in crate::store) async fn make_index(
    sessions: &Sessions,
    names: &Names,
    statement: &str,
) -> Result<(), StoreError> {
    // Two that make one at the same time wait for each other until PostgreSQL ends one of them.
    while is_being_made(sessions, names).await? {
        info!("another process is making an index on the table; looking again in a second");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    let removal = drop_left_behind(sessions, names).await?;
    // None of these may stand in a transaction. Behind a pooler, a setting would stay with the session;
    // without one, it stays with a connection that nobody else gets.
    let mut connection = sessions.acquire().await?.detach();
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
    drop(connection);
    if indexes(sessions, names).await?.serve {
        return Ok(());
    }
    let name = index_name(names.table.parts().1);
    match is_whole(sessions, names, &name).await? {
        true => Err(StoreError::Config(format!(
            "an index with the name {name:?} is there, and does not lead to the voices in processing; rename it"
        ))),
        false => Err(StoreError::Contended(format!(
            "the index {name:?} is not whole: another process was making it at the same time"
        ))),
    }
}

/// Whether anybody is making an index on the table.
async fn is_being_made(sessions: &Sessions, names: &Names) -> Result<bool, StoreError> {
    const BEING_MADE: &str = "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index \
                              WHERE datname = current_database() AND relid = to_regclass($1))";
    let mut session = sessions.begin().await?;
    let being_made = session
        .query(BEING_MADE)
        .bind(names.table.quoted())
        .fetch_one(&mut *session)
        .await?;
    session.keep().await?;
    Ok(being_made.try_get(0)?)
}

/// Whether the table has an index of this name that was made to its end.
async fn is_whole(sessions: &Sessions, names: &Names, index: &str) -> Result<bool, StoreError> {
    const IS_WHOLE: &str = "SELECT EXISTS (SELECT FROM pg_index i \
                            JOIN pg_class t ON t.oid = to_regclass($1) \
                            JOIN pg_class c ON c.oid = i.indexrelid \
                            WHERE c.relname = $2 AND c.relnamespace = t.relnamespace AND i.indisvalid)";
    let mut session = sessions.begin().await?;
    let whole = session
        .query(IS_WHOLE)
        .bind(names.table.quoted())
        .bind(index)
        .fetch_one(&mut *session)
        .await?;
    session.keep().await?;
    Ok(whole.try_get(0)?)
}
