//! `voice-sync migrate`.

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use super::{Options, Output, at, in_time, print};
use crate::core::exit::{Exit, Failed};
use crate::store::{
    Access, Adoption, Database, DatabaseUrl, MigrationState, Names, PendingMigration,
};

/// Create or update voice-sync's own tables.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync migrate
  voice-sync migrate --dry-run
  voice-sync migrate --adopt")]
pub(super) struct Migrate {
    /// Add the columns status, preview_url and completed_at to the application's table if they are missing, and an index
    /// for the voices in processing. For applications without migrations. Run it as the table's owner.
    #[arg(long)]
    adopt: bool,

    /// Print the SQL, to apply it by hand.
    #[arg(long)]
    dry_run: bool,
}

/// The migrations and columns that were missing.
struct Missing {
    migrations: Vec<PendingMigration>,
    adoption: Adoption,
}

impl Migrate {
    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        let (url, names) = (options.database_url()?, options.names()?);
        let database = in_time(&url, self.connect(&url)).await?;
        let missing = in_time(&url, self.migrate(&url, &names, &database)).await?;
        if !self.dry_run {
            // No time limit: creating an index may take long.
            if self.adopt {
                database.adopt(&names).await.map_err(|error| {
                    let advice = match error.is_transient() {
                        true => "run it again when no transaction locks the table for more than a few seconds",
                        false => "run it as the owner of the table",
                    };
                    at(&url)(error).with_hint(advice)
                })?;
            }
        }
        print(&self.text(&url, &missing, options.output))?;
        Ok(Exit::Success)
    }

    async fn connect(&self, url: &DatabaseUrl) -> Result<Database, Failed> {
        let access = match self.dry_run {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        Database::connect(url, access).await.map_err(at(url))
    }

    /// Migrates voice-sync's own tables. Whether the application's table can be adopted is checked before.
    async fn migrate(
        &self,
        url: &DatabaseUrl,
        names: &Names,
        database: &Database,
    ) -> Result<Missing, Failed> {
        if let MigrationState::Ahead { found } =
            database.migration_state().await.map_err(at(url))?
        {
            return Err(Failed::config(anyhow!(
                "the {url} has tables of a newer version ({found}) than this program knows; \
                 run the newer voice-sync"
            )));
        }
        let adoption = match self.adopt {
            true => database.adoption(names).await.map_err(at(url))?,
            false => Adoption::default(),
        };
        let migrations = database.pending_migrations().await.map_err(at(url))?;
        if !self.dry_run && !migrations.is_empty() {
            database.migrate().await.map_err(|error| {
                at(url)(error).with_hint(
                    "migrate as a role that may create a schema, or apply the SQL of `voice-sync migrate --dry-run` by \
                     hand",
                )
            })?;
        }
        Ok(Missing {
            migrations,
            adoption,
        })
    }

    fn text(&self, url: &DatabaseUrl, missing: &Missing, output: Output) -> String {
        let Missing {
            migrations,
            adoption,
        } = missing;
        let statements = adoption.statements();
        let nothing = migrations.is_empty() && *adoption == Adoption::default();
        match output {
            Output::Json => json!({
                "dry_run": self.dry_run,
                "migrations": migrations.iter().map(|m| json!({"version": m.version, "name": m.name, "sql": m.sql})).collect::<Vec<_>>(),
                "adoption": statements.collect::<Vec<_>>(),
                "exit_code": Exit::Success.code(),
            })
            .to_string(),
            Output::Text if nothing => {
                format!("nothing to do: voice-sync's own tables in the {url} are up to date")
            }
            Output::Text if self.dry_run => sql(migrations, adoption),
            Output::Text => migrations
                .iter()
                .map(|m| format!("applied migration {} ({}) to the {url}", m.version, m.name))
                .chain(statements.map(|statement| format!("ran {statement}")))
                .collect::<Vec<_>>()
                .join("\n"),
        }
    }
}

fn sql(migrations: &[PendingMigration], adoption: &Adoption) -> String {
    let own = migrations.iter().map(|migration| migration.sql.as_str());
    let together: Vec<_> = own
        .chain(adoption.columns.iter().map(String::as_str))
        .collect();
    let restore = adoption.restore.iter();
    let restore = restore.map(|restore| format!("\n-- until it changes nothing more:\n{restore}"));
    let index = adoption.index.iter().map(|index| format!("\n{index}"));
    format!(
        "BEGIN;\n\n{}\nCOMMIT;{}",
        together.join("\n"),
        restore.chain(index).collect::<String>()
    )
}
