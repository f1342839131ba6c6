//! The index for the voices in processing.

use std::time::Duration;

use tracing::info;

use super::Connections;
use crate::store::StoreError;
use crate::store::adopt::index_name;
use crate::store::args::Args;
use crate::store::dialect::Dialect;
use crate::store::table::Names;

/// How often to check whether another process has finished the index.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The tables that contain the rows, and their indexes for those in processing.
pub(crate) struct Indexes {
    /// The approximate number of rows.
    pub(crate) rows: u64,
    /// Whether an index leads to those in processing, in each partition that has any rows.
    pub(crate) serve: bool,
    /// Partitions without an index. PostgreSQL cannot create one concurrently on the partitioned table.
    pub(crate) partitions: Vec<String>,
}

/// Finds the indexes.
pub(crate) async fn indexes(
    connections: &Connections,
    names: &Names,
) -> Result<Indexes, StoreError> {
    // An index leads to the voices in processing if the status is its first column, or if it contains no other
    // voices. PostgreSQL normalises its condition and prints it in one of these forms.
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
    let mut args = Args::new(Dialect::Postgres);
    args.bind(names.table.quoted());
    args.bind(names.columns.status.as_str());
    args.bind(names.statuses.processing.as_str());
    let rows = connections.fetch_all(INDEXES.to_owned(), args).await?;
    let mut found = Indexes {
        rows: 0,
        serve: true,
        partitions: Vec::new(),
    };
    for row in rows {
        found.rows += row.count("size")?;
        let (serves, is_partition): (bool, bool) = (row.get("serves")?, row.get("is_partition")?);
        found.serve &= serves;
        if is_partition && !serves {
            found.partitions.push(row.get("name")?);
        }
    }
    Ok(found)
}

/// The statement that removes what an interrupted attempt to create the index left.
pub(crate) async fn drop_left_behind(
    connections: &Connections,
    names: &Names,
) -> Result<Option<String>, StoreError> {
    const LEFT_BEHIND: &str = "
        SELECT format('DROP INDEX CONCURRENTLY IF EXISTS %s', i.indexrelid::regclass) AS statement
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = to_regclass($1) AND c.relname = $2 AND NOT i.indisvalid
          AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p
                          WHERE p.relid = i.indrelid)";
    let mut args = Args::new(Dialect::Postgres);
    args.bind(names.table.quoted());
    args.bind(index_name(names.table.parts().1));
    let rows = connections.fetch_all(LEFT_BEHIND.to_owned(), args).await?;
    rows.first().map(|row| row.get("statement")).transpose()
}

/// Creates the index without blocking writes. First removes what an interrupted attempt left: it is of no use and
/// slows every write.
pub(in crate::store) async fn make_index(
    connections: &Connections,
    names: &Names,
    statement: &str,
) -> Result<(), StoreError> {
    // Two processes that create one at the same time wait for each other until PostgreSQL cancels one of them.
    while is_being_made(connections, names).await? {
        info!("another process is creating an index on the table; checking again in a second");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    let removal = drop_left_behind(connections, names).await?;
    // These statements cannot run in a transaction. Behind a pooler, a setting would stay with the session; without a
    // pooler, it stays with a connection that nobody else uses.
    const UNHURRIED: &str = "SELECT set_config('statement_timeout', '0', FALSE), set_config('lock_timeout', '0', \
                             FALSE)";
    let unhurried = (!connections.is_pooled()).then(|| UNHURRIED.to_owned());
    let statements = unhurried
        .into_iter()
        .chain(removal)
        .chain([statement.to_owned()]);
    connections.run_alone(statements).await?;
    if indexes(connections, names).await?.serve {
        return Ok(());
    }
    let name = index_name(names.table.parts().1);
    match is_whole(connections, names, &name).await? {
        true => Err(StoreError::Config(format!(
            "the index {name:?} exists, but does not lead to the voices in processing; rename it"
        ))),
        false => Err(StoreError::Contended(format!(
            "the index {name:?} is invalid: another process was creating it at the same time; run this again"
        ))),
    }
}

/// Whether any process is creating an index on the table.
async fn is_being_made(connections: &Connections, names: &Names) -> Result<bool, StoreError> {
    const BEING_MADE: &str = "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index \
                              WHERE datname = current_database() AND relid = to_regclass($1)) AS is_so";
    is_so(connections, BEING_MADE, [names.table.quoted()]).await
}

/// Whether the table has a complete index of this name.
async fn is_whole(
    connections: &Connections,
    names: &Names,
    index: &str,
) -> Result<bool, StoreError> {
    const IS_WHOLE: &str = "SELECT EXISTS (SELECT FROM pg_index i \
                            JOIN pg_class t ON t.oid = to_regclass($1) \
                            JOIN pg_class c ON c.oid = i.indexrelid \
                            WHERE c.relname = $2 AND c.relnamespace = t.relnamespace AND i.indisvalid) AS is_so";
    is_so(
        connections,
        IS_WHOLE,
        [names.table.quoted(), index.to_owned()],
    )
    .await
}

/// The answer to a yes-no query with parameters.
async fn is_so(
    connections: &Connections,
    question: &str,
    parameters: impl IntoIterator<Item = String>,
) -> Result<bool, StoreError> {
    let mut args = Args::new(Dialect::Postgres);
    for parameter in parameters {
        args.bind(parameter);
    }
    let answer = connections.fetch_one(question.to_owned(), args).await?;
    answer.get("is_so")
}
