//! The index that serves the voices in processing.

use sqlx::{AssertSqlSafe, Executor, Row};

use super::Sessions;
use crate::store::StoreError;
use crate::store::adopt::index_name;
use crate::store::table::Names;

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
                          WHERE p.index_relid = i.indexrelid)";
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
    let removal = drop_left_behind(sessions, names).await?;
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
    match indexes(sessions, names).await?.serve {
        true => Ok(()),
        false => Err(StoreError::Config(format!(
            "an index with the name {:?} is there, and does not lead to the voices in processing; rename it",
            index_name(names.table.parts().1)
        ))),
    }
}
