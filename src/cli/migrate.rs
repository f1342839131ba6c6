//! `voice-sync migrate`.

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use super::{Options, Output, at, in_time, print};
use crate::exit::{Exit, Failed};
use crate::store::{Access, Database, DatabaseUrl, MigrationState, PendingMigration};

/// Make or update voice-sync's own tables.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// Print the SQL that would run, for a person who applies it by hand.
    #[arg(long)]
    dry_run: bool,
}

impl Migrate {
    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        let url = options.database_url()?;
        let pending = in_time(&url, self.migrate(&url)).await?;
        print(&self.text(&url, &pending, options.output))?;
        Ok(Exit::Success)
    }

    /// Returns what was missing.
    async fn migrate(&self, url: &DatabaseUrl) -> Result<Vec<PendingMigration>, Failed> {
        let access = if self.dry_run {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let database = Database::connect(url, access).await.map_err(at(url))?;
        if let MigrationState::Ahead { found } =
            database.migration_state().await.map_err(at(url))?
        {
            return Err(Failed::config(anyhow!(
                "the {url} has tables of a newer version ({found}) than this program knows; \
                 run the newer voice-sync"
            )));
        }
        let pending = database.pending_migrations().await.map_err(at(url))?;
        if !self.dry_run && !pending.is_empty() {
            database.migrate().await.map_err(|error| {
                let Failed { exit, message } = at(url)(error);
                let advice = "migrate as a role that may create a schema, or apply the SQL of \
                              `voice-sync migrate --dry-run` by hand";
                Failed {
                    exit,
                    message: message.context(advice),
                }
            })?;
        }
        Ok(pending)
    }

    fn text(&self, url: &DatabaseUrl, pending: &[PendingMigration], output: Output) -> String {
        match output {
            Output::Json => json!({
                "dry_run": self.dry_run,
                "migrations": pending.iter().map(|m| json!({"version": m.version, "name": m.name, "sql": m.sql})).collect::<Vec<_>>(),
                "exit_code": Exit::Success.code(),
            })
            .to_string(),
            Output::Text if pending.is_empty() => {
                format!("nothing to do: voice-sync's own tables in the {url} are up to date")
            }
            Output::Text if self.dry_run => sql(pending),
            Output::Text => pending
                .iter()
                .map(|m| format!("applied migration {} ({}) to the {url}", m.version, m.name))
                .collect::<Vec<_>>()
                .join("\n"),
        }
    }
}

fn sql(pending: &[PendingMigration]) -> String {
    let statements: Vec<_> = pending
        .iter()
        .map(|migration| migration.sql.as_str())
        .collect();
    format!("BEGIN;\n\n{}\nCOMMIT;", statements.join("\n"))
}
