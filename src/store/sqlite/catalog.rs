//! Finding out whether the application's table fits, and how to speak to it.

use sqlx::{Row, SqlitePool};
use tracing::warn;

use super::{KeyForm, SqliteStore};
use crate::store::StoreError;
use crate::store::table::{Identifier, Misfit, Names, absent, literal};

struct Column {
    name: String,
    declared: String,
}

impl SqliteStore {
    pub(in crate::store) async fn open(
        pool: SqlitePool,
        names: &Names,
        own_tables: bool,
    ) -> Result<Self, StoreError> {
        let table = names.table.quoted();
        let (schema, name) = names.table.parts();
        let columns: Vec<Column> = sqlx::query("SELECT name, type FROM pragma_table_info($1, $2)")
            .bind(name)
            .bind(schema.unwrap_or("main"))
            .fetch_all(&pool)
            .await?
            .into_iter()
            .map(|row| {
                Ok::<_, sqlx::Error>(Column {
                    name: row.try_get("name")?,
                    declared: row.try_get::<String, _>("type")?.to_ascii_uppercase(),
                })
            })
            .collect::<Result<_, _>>()?;
        if columns.is_empty() {
            return Err(Misfit::NoTable { table }.into());
        }
        // SQLite compares the names of columns without regard to ASCII case.
        let find = |name: &Identifier| {
            columns
                .iter()
                .find(|column| column.name.eq_ignore_ascii_case(name.as_str()))
        };
        let c = &names.columns;
        let there: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        absent(&table, c, &there, str::eq_ignore_ascii_case)?;
        let form = |name: &Identifier| match find(name) {
            Some(column) if length(&column.declared) == Some(32) => KeyForm::BareUuid,
            Some(_) | None => KeyForm::Plain,
        };
        let created_at = match find(&c.created_at) {
            Some(_) => format!("CAST(v.{} AS TEXT)", c.created_at.quoted()),
            None => "NULL".to_owned(),
        };
        let user_id = match find(&c.user_id) {
            Some(_) => format!("CAST({} AS TEXT)", c.user_id.quoted()),
            None => {
                warn!(
                    column = c.user_id.as_str(),
                    "the table has no such column; events carry no user"
                );
                "NULL".to_owned()
            }
        };
        Ok(Self {
            id: c.id.quoted(),
            id_form: form(&c.id),
            user_id,
            user_id_form: form(&c.user_id),
            provider_id: c.elevenlabs_voice_id.quoted(),
            status: c.status.quoted(),
            preview_url: c.preview_url.quoted(),
            completed_at: c.completed_at.quoted(),
            created_at,
            processing: literal(&names.statuses.processing),
            completed: literal(&names.statuses.completed),
            failed: literal(&names.statuses.failed),
            preview_room: find(&c.preview_url).and_then(|column| length(&column.declared)),
            own_tables,
            table,
            pool,
        })
    }
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
    use super::*;

    #[test]
    fn a_column_of_32_characters_holds_a_uuid_without_dashes() {
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
