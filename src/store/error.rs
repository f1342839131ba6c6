//! Database errors, by what the caller does about them.

use std::fmt;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::table::SchemaError;
use crate::core::exit::Exit;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, no free connection, or no answer in time: repeat later.
    #[error("cannot reach the database: {0}")]
    Unreachable(String),
    /// A lock, a deadlock, a busy file: repeat at once.
    #[error("the database is busy: {0}")]
    Contended(String),
    /// A value in this batch is refused: repeat with fewer rows, down to one.
    #[error("the database refuses a value: {0}")]
    Refused(String),
    /// The disk is full or broken.
    #[error("the database cannot write to disk: {0}")]
    Io(String),
    /// Wrong login or schema: waiting does not help.
    #[error("{0}")]
    Config(String),
    /// A table does not exist.
    #[error("{0}")]
    NoSuchTable(String),
    /// The role lacks a privilege.
    #[error("a privilege is missing: {0}")]
    Privilege(String),
    /// The application's table is not suitable.
    #[error(transparent)]
    Schema(#[from] SchemaError),
}

impl StoreError {
    /// The exit code, if the error ends the command.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable(_) | Self::Contended(_) | Self::Refused(_) => Exit::Database,
            Self::Io(_) => Exit::Io,
            Self::Config(_) | Self::NoSuchTable(_) | Self::Privilege(_) | Self::Schema(_) => {
                Exit::Config
            }
        }
    }

    /// Whether the same statement may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Contended(_) => true,
            Self::Refused(_)
            | Self::Io(_)
            | Self::Config(_)
            | Self::NoSuchTable(_)
            | Self::Privilege(_)
            | Self::Schema(_) => false,
        }
    }
}

/// sqlx's message if the server refuses TLS.
const NO_TLS: &str = "server does not support TLS";

impl From<sqlx::Error> for StoreError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "sqlx may add errors; unknown errors count as temporary"
    )]
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
                Some(error) => by_sqlstate(error),
                None => by_sqlite_code(&*error),
            },
            sqlx::Error::PoolTimedOut => Self::Unreachable("no connection in time".to_owned()),
            sqlx::Error::Io(error) => Self::Unreachable(error.to_string()),
            sqlx::Error::Tls(error) if error.to_string().contains(NO_TLS) => {
                Self::Config(format!("{NO_TLS}, but the URL requires it (sslmode)"))
            }
            sqlx::Error::Tls(error) => Self::Unreachable(format!("TLS: {error}")),
            other => Self::Unreachable(other.to_string()),
        }
    }
}

/// Classes and codes: "PostgreSQL Error Codes", appendix A of its manual.
fn by_sqlstate(error: &PgDatabaseError) -> StoreError {
    // The application altered its table, and the result types of a prepared statement changed. Messages are
    // translated; the names of the server's functions are not.
    const REPLANNED: &str = "RevalidateCachedQuery";
    let code = error.code();
    let message = said(error, &code);
    match code {
        // A cancelled statement (57014) usually waited for a lock, with a `statement_timeout` that is shorter than
        // our own time limit.
        "40001" | "40P01" | "55P03" | "57014" => StoreError::Contended(message),
        "0A000" if error.routine() == Some(REPLANNED) => StoreError::Contended(message),
        // A view or rule that does not allow writes. On a refused connection, 55000 means that the database is under
        // maintenance.
        "0A000" => StoreError::Config(message),
        "55000" if error.severity() == PgSeverity::Error => StoreError::Config(message),
        "53100" | "58030" => StoreError::Io(message),
        // This may be a failover: later, the same address may be that of the primary.
        "25006" => StoreError::Unreachable(format!(
            "it is read-only ({message}): it is a standby, or default_transaction_read_only is on; use the URL of the \
             primary"
        )),
        "42501" => StoreError::Privilege(message),
        "42P01" | "3F000" => StoreError::NoSuchTable(message),
        "3D000" | "42703" => StoreError::Config(message),
        code => match code.get(..2).unwrap_or_default() {
            "28" => StoreError::Config(format!("login refused: {message}")),
            "42" => StoreError::Config(message),
            // Connections, sessions, resources, locks, an operator and the system: errors of the server as a whole.
            "08" | "25" | "26" | "40" | "53" | "55" | "57" | "58" => {
                StoreError::Unreachable(message)
            }
            // Anything else: a value, or a trigger, which may raise any code.
            _ => StoreError::Refused(message),
        },
    }
}

/// Primary result codes: <https://www.sqlite.org/rescode.html>.
fn by_sqlite_code(error: &dyn DatabaseError) -> StoreError {
    let code = error.code().unwrap_or_default();
    let message = said(error, &code);
    match code.parse::<u32>().map(|extended| extended & 0xff) {
        Ok(5 | 6) => StoreError::Contended(message),
        Ok(8) => StoreError::Config(format!(
            "{message}: this user may not write to the file or to its directory"
        )),
        Ok(14) => StoreError::Unreachable(format!(
            "{message}: check that this user may read the file and its directory"
        )),
        // No memory, a file that another process opened or changed at this moment, too many open files.
        Ok(7 | 9 | 15) => StoreError::Unreachable(message),
        Ok(10 | 11 | 13) => StoreError::Io(message),
        Ok(18..=20) => StoreError::Refused(message),
        Ok(1) if error.message().starts_with("no such table") => StoreError::NoSuchTable(message),
        Ok(_) | Err(_) => StoreError::Config(message),
    }
}

fn said(error: &dyn DatabaseError, code: &dyn fmt::Display) -> String {
    format!("{} ({code})", error.message())
}
