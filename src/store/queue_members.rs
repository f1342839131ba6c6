//! Members of the application's queue: which of them are finished, and which have had no row for a while.

use std::collections::HashSet;
use std::time::Duration;

use super::args::Columns;
use super::values::QueueMembers;
use super::{Store, StoreError};

/// The application may add a member before it commits the row. Without a row for this time, a member is left over.
const WITHOUT_ROW: Duration = Duration::from_secs(60 * 60);
/// What was noticed longer ago is about a member that came and went.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Store {
    /// Sorts members of a queue. A member without a row counts as left over when it was noticed an hour ago as well.
    pub(super) async fn queue_members_once(
        &self,
        queue: &str,
        members: &[String],
    ) -> Result<QueueMembers, StoreError> {
        let table = &self.table;
        let mut args = self.database.args();
        // Each in all forms that the column may contain.
        let forms = members
            .iter()
            .map(|member| table.keys(member).into_iter().map(move |key| (member, key)));
        let forms: Vec<_> = forms.flatten().collect();
        let key_type = table.key_type();
        let rows = Columns::of(&forms)
            .text("given", |(given, _)| Some(given))
            .key("key", &key_type, |(_, key)| Some(key));
        let rows = args.rows("g", rows);
        let sql = format!(
            "SELECT g.given, max(CASE WHEN v.{status} IN ({completed}, {failed}) THEN 1 ELSE 0 END) AS finished
             FROM {rows} CROSS JOIN {name} v WHERE {key} = g.key GROUP BY g.given",
            name = table.table,
            key = table.key(),
            status = table.status,
            completed = table.completed,
            failed = table.failed,
        );
        let (mut with_row, mut finished) = (HashSet::new(), Vec::new());
        for row in &self.database.fetch_all(sql, args).await? {
            let given: String = row.get("given")?;
            if row.count("finished")? > 0 {
                finished.push(given.clone());
            }
            with_row.insert(given);
        }
        let without_row = members.iter().filter(|member| !with_row.contains(*member));
        let without_row: Vec<&str> = without_row.map(String::as_str).collect();
        let with_row = with_row.iter().map(String::as_str).collect::<Vec<_>>();
        self.forget_members_once(queue, &with_row).await?;
        Ok(QueueMembers {
            finished,
            left_over: self.left_over(queue, &without_row).await?,
        })
    }

    /// Forgets that members had no row.
    pub(super) async fn forget_members_once(
        &self,
        queue: &str,
        members: &[&str],
    ) -> Result<(), StoreError> {
        if members.is_empty() {
            return Ok(());
        }
        let (dialect, mut args) = (self.dialect(), self.database.args());
        let sql = format!(
            "DELETE FROM {own} WHERE queue = {queue} AND (member {members} OR noticed_at < {now} - {forgotten})",
            own = dialect.own("queue_members"),
            queue = args.bind(queue),
            members = args.is_any("text", members.iter().copied()),
            now = dialect.now(),
            forgotten = dialect.span(FORGOTTEN),
        );
        self.database.execute(sql, args).await.map(drop)
    }

    async fn left_over(&self, queue: &str, members: &[&str]) -> Result<Vec<String>, StoreError> {
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let (dialect, mut args) = (self.dialect(), self.database.args());
        let (own, now) = (dialect.own("queue_members"), dialect.now());
        let key = args.bind(queue);
        let rows = args.rows(
            "m",
            Columns::of(members).text("member", |member| Some(member)),
        );
        let sql = format!(
            "INSERT INTO {own} (queue, member, noticed_at) SELECT {key}, m.member, {now} FROM {rows} WHERE TRUE
             ON CONFLICT (queue, member) DO NOTHING"
        );
        self.database.execute(sql, args).await?;
        let mut args = self.database.args();
        let sql = format!(
            "SELECT member FROM {own}
             WHERE queue = {queue} AND member {members} AND noticed_at <= {now} - {without_row}",
            queue = args.bind(queue),
            members = args.is_any("text", members.iter().copied()),
            without_row = dialect.span(WITHOUT_ROW),
        );
        let rows = self.database.fetch_all(sql, args).await?;
        rows.iter().map(|row| row.get("member")).collect()
    }
}
