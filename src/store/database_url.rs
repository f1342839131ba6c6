//! Database URLs in the form that applications use, with the meaning that the applications' drivers give them.
//!
//! sqlx reads URLs differently from SQLAlchemy: it ignores unknown parameters, so asyncpg's `?ssl=require` would
//! silently become an unencrypted connection. Here each part is translated explicitly, and an unknown part is an
//! error. Errors never repeat the URL, which contains a password.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// The application's database, with login.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A PostgreSQL server.
    Postgres(Box<PgConnectOptions>),
    /// An SQLite file.
    Sqlite(PathBuf),
}

/// Why a database URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDatabaseUrl {
    /// No `://`. The text is not repeated: it could be a password.
    #[error("it has no scheme; an example is postgresql://user:password@host:5432/database")]
    NoScheme,
    /// Not a supported database.
    #[error(
        "its scheme is {0:?}; use postgresql:// or sqlite:// (with or without a driver such as +asyncpg)"
    )]
    Scheme(String),
    /// An unknown driver for this database.
    #[error("its driver {0:?} is not supported; remove it from the scheme")]
    Driver(String),
    /// A parameter that is not supported.
    #[error("its parameter {0:?} is not understood; remove it")]
    Parameter(String),
    /// A parameter given twice.
    #[error("its parameter {0:?} is given more than once")]
    Repeated(String),
    /// An unsupported value of a known parameter.
    #[error("its parameter {name:?} cannot be {value:?}; it can be {allowed}")]
    Value {
        name: &'static str,
        value: String,
        /// The supported values.
        allowed: &'static str,
    },
    /// The port is not a number up to 65535.
    #[error("its port is not a number between 1 and 65535")]
    Port,
    /// Without a database name or file name.
    #[error("it has no database name")]
    NoDatabase,
    /// Several hosts, as libpq allows.
    #[error("it has several hosts; use the one that accepts writes")]
    SeveralHosts,
    /// A reserved character in user or password.
    #[error(
        "its user or password contains /, ?, # or @; percent-encode them, as in %2F, %3F, %23, %40"
    )]
    NotEncoded,
    /// A percent sequence that is not UTF-8, or is a NUL.
    #[error("it contains a percent sequence that is not UTF-8, or is a NUL")]
    Encoding,
    /// A database that other processes cannot access.
    #[error("it is an in-memory database, which the application cannot share; name a file")]
    InMemory,
}

use InvalidDatabaseUrl as Invalid;

const POSTGRES_DRIVERS: [&str; 6] = [
    "",
    "asyncpg",
    "psycopg",
    "psycopg2",
    "psycopg_async",
    "pg8000",
];
const SQLITE_DRIVERS: [&str; 3] = ["", "aiosqlite", "pysqlite"];

impl DatabaseUrl {
    /// Reads a URL in the form of SQLAlchemy, libpq or sqlx.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").ok_or(Invalid::NoScheme)?;
        let (database, driver) = scheme.split_once('+').unwrap_or((scheme, ""));
        let known = |drivers: &[&str]| match drivers.contains(&driver) {
            true => Ok(()),
            false => Err(Invalid::Driver(driver.to_owned())),
        };
        match database {
            "postgresql" | "postgres" => {
                known(&POSTGRES_DRIVERS)?;
                postgres(rest)
            }
            "sqlite" => {
                known(&SQLITE_DRIVERS)?;
                sqlite(rest)
            }
            other => Err(Invalid::Scheme(other.to_owned())),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(options) => {
                let database = options.get_database().unwrap_or_default();
                match options.get_socket() {
                    Some(socket) => write!(
                        f,
                        "PostgreSQL database {database:?} at {}",
                        socket.display()
                    ),
                    None => write!(
                        f,
                        "PostgreSQL database {database:?} at {}:{}",
                        options.get_host(),
                        options.get_port()
                    ),
                }
            }
            Self::Sqlite(path) => write!(f, "SQLite file {}", path.display()),
        }
    }
}

fn postgres(rest: &str) -> Result<DatabaseUrl, Invalid> {
    // A password with one of these characters, not encoded, would appear in a message as another part of the URL.
    let authority_ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if rest.contains('#') || rest[authority_ends..].contains('@') {
        return Err(Invalid::NotEncoded);
    }
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = address.split_once('/').unwrap_or((address, ""));
    let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (user, password, database) = (decode(user)?, decode(password)?, decode(database)?);
    if host.contains(',') {
        return Err(Invalid::SeveralHosts);
    }
    let (host, port) = split_port(host)?;
    let mut host = decode(host)?;
    let mut port = port;
    let mut database = database;
    let mut user = user;
    let mut password = password;

    let mut options = PgConnectOptions::new_without_pgpass()
        .ssl_mode(PgSslMode::Prefer)
        .application_name("voice-sync");
    for (name, value) in parameters(query)? {
        match name.as_str() {
            "ssl" | "sslmode" => options = options.ssl_mode(ssl_mode(&name, &value)?),
            "sslrootcert" => options = options.ssl_root_cert(value),
            "sslcert" => options = options.ssl_client_cert(value),
            "sslkey" => options = options.ssl_client_key(value),
            "application_name" => options = options.application_name(&value),
            "host" if value.contains(',') => return Err(Invalid::SeveralHosts),
            "host" => host = value,
            "port" => port = Some(value.parse().map_err(|_| Invalid::Port)?),
            "dbname" | "database" => database = value,
            "user" => user = value,
            "password" => password = value,
            // Parameters of asyncpg's and SQLAlchemy's own caches, set to 0 behind PgBouncer.
            "prepared_statement_cache_size" | "statement_cache_size" => {
                let capacity = value.parse().map_err(|_| Invalid::Value {
                    name: "prepared_statement_cache_size",
                    value,
                    allowed: "a number",
                })?;
                options = options.statement_cache_capacity(capacity);
            }
            // The driver's timeouts and names; nothing that affects security.
            "connect_timeout" | "timeout" | "command_timeout" | "prepared_statement_name_func" => {}
            _ => return Err(Invalid::Parameter(name)),
        }
    }
    if database.is_empty() {
        return Err(Invalid::NoDatabase);
    }
    options = options.database(&database).port(port.unwrap_or(5432));
    if host.starts_with('/') {
        options = options.socket(host);
    } else {
        options = options.host(if host.is_empty() { "localhost" } else { &host });
    }
    if !user.is_empty() {
        options = options.username(&user);
    }
    if !password.is_empty() {
        options = options.password(&password);
    }
    Ok(DatabaseUrl::Postgres(Box::new(options)))
}

/// asyncpg's `ssl` and libpq's `sslmode` have the same values. `ssl=true` makes asyncpg verify certificate and host
/// name.
fn ssl_mode(name: &str, value: &str) -> Result<PgSslMode, Invalid> {
    Ok(match value {
        "disable" | "false" => PgSslMode::Disable,
        "allow" => PgSslMode::Allow,
        "prefer" => PgSslMode::Prefer,
        "require" => PgSslMode::Require,
        "verify-ca" => PgSslMode::VerifyCa,
        "verify-full" | "true" => PgSslMode::VerifyFull,
        _ => {
            return Err(Invalid::Value {
                name: if name == "ssl" { "ssl" } else { "sslmode" },
                value: value.to_owned(),
                allowed: "disable, allow, prefer, require, verify-ca or verify-full",
            });
        }
    })
}

fn split_port(host: &str) -> Result<(&str, Option<u16>), Invalid> {
    // In a URL, an IPv6 address is in brackets, which the driver does not accept.
    if let Some((address, tail)) = host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        return match tail.strip_prefix(':') {
            Some(port) => Ok((address, Some(parse_port(port)?))),
            None if tail.is_empty() => Ok((address, None)),
            None => Err(Invalid::Port),
        };
    }
    match host.rsplit_once(':') {
        Some((host, port)) => Ok((host, Some(parse_port(port)?))),
        None => Ok((host, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, Invalid> {
    match text.parse() {
        Ok(0) | Err(_) => Err(Invalid::Port),
        Ok(port) => Ok(port),
    }
}

/// `sqlite:///p` and `sqlite://p` are relative, `sqlite:////p` is absolute.
fn sqlite(rest: &str) -> Result<DatabaseUrl, Invalid> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    for (name, _) in parameters(query)? {
        match name.as_str() {
            // The application's lock timeout and threading options: they do not concern the file.
            "timeout" | "check_same_thread" | "cached_statements" | "isolation_level" => {}
            _ => return Err(Invalid::Parameter(name)),
        }
    }
    let path = decode(path.strip_prefix('/').unwrap_or(path))?;
    match path.as_str() {
        "" => Err(Invalid::NoDatabase),
        ":memory:" => Err(Invalid::InMemory),
        path => Ok(DatabaseUrl::Sqlite(PathBuf::from(path))),
    }
}

fn parameters(query: &str) -> Result<Vec<(String, String)>, Invalid> {
    let mut seen = HashSet::new();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name)?;
            match seen.insert(name.clone()) {
                true => Ok((name, decode(value)?)),
                false => Err(Invalid::Repeated(name)),
            }
        })
        .collect()
}

/// No server and no file has a name with a NUL.
fn decode(text: &str) -> Result<String, Invalid> {
    let decoded = percent_decode_str(text).decode_utf8().ok();
    let decoded = decoded.filter(|text| !text.contains('\0'));
    decoded
        .map(|text| text.into_owned())
        .ok_or(Invalid::Encoding)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn postgres_options(text: &str) -> PgConnectOptions {
        match DatabaseUrl::parse(text) {
            Ok(DatabaseUrl::Postgres(options)) => *options,
            Ok(DatabaseUrl::Sqlite(_)) => panic!("{text} is SQLite"),
            Err(error) => panic!("{text}: {error}"),
        }
    }

    fn path(text: &str) -> PathBuf {
        match DatabaseUrl::parse(text) {
            Ok(DatabaseUrl::Sqlite(path)) => path,
            Ok(DatabaseUrl::Postgres(_)) => panic!("{text} is PostgreSQL"),
            Err(error) => panic!("{text}: {error}"),
        }
    }

    fn error(text: &str) -> Invalid {
        match DatabaseUrl::parse(text) {
            Ok(_) => panic!("{text} is taken"),
            Err(error) => error,
        }
    }

    #[test]
    fn urls_of_all_drivers_give_the_same_server() {
        for driver in ["", "+asyncpg", "+psycopg", "+psycopg2"] {
            let options = postgres_options(&format!(
                "postgresql{driver}://us%40er:p%2Fw@db.example:6543/app"
            ));
            assert_eq!(options.get_host(), "db.example");
            assert_eq!(options.get_port(), 6543);
            assert_eq!(options.get_username(), "us@er");
            assert_eq!(options.get_database(), Some("app"));
        }
        let options = postgres_options("postgres://user@[::1]:5433/app");
        assert_eq!((options.get_host(), options.get_port()), ("::1", 5433));
        assert_eq!(postgres_options("postgresql://u@h/app").get_port(), 5432);
        let options = postgres_options("postgresql+asyncpg://user@/db?host=/var/run/postgresql");
        assert_eq!(
            options.get_socket(),
            Some(&PathBuf::from("/var/run/postgresql"))
        );
    }

    #[test]
    fn tls_is_never_weakened() {
        use PgSslMode::*;
        let mode = |query: &str| {
            format!(
                "{:?}",
                postgres_options(&format!("postgresql://h/d{query}")).get_ssl_mode()
            )
        };
        for (query, expected) in [
            ("?ssl=require", Require),
            ("?sslmode=require", Require),
            ("?ssl=verify-full", VerifyFull),
            ("?ssl=true", VerifyFull),
            ("?sslmode=verify-ca&sslrootcert=/ca.pem", VerifyCa),
            ("?ssl=disable", Disable),
            ("", Prefer),
        ] {
            assert_eq!(mode(query), format!("{expected:?}"), "{query}");
        }
        assert!(matches!(
            error("postgresql://h/d?ssl=on"),
            Invalid::Value { name: "ssl", .. }
        ));
        assert!(matches!(
            error("postgresql://h/d?sslmode=REQUIRE"),
            Invalid::Value { .. }
        ));
    }

    #[test]
    fn rejects_unsupported_and_malformed_database_urls() {
        assert_eq!(
            error("postgresql://h/d?sslmod=require"),
            Invalid::Parameter("sslmod".into())
        );
        assert_eq!(
            error("postgresql://h/d?options=-csearch_path%3Dx"),
            Invalid::Parameter("options".into())
        );
        assert_eq!(
            error("postgresql://h/d?ssl=require&ssl=disable"),
            Invalid::Repeated("ssl".into())
        );
        assert_eq!(error("mysql://h/d"), Invalid::Scheme("mysql".into()));
        assert_eq!(
            error("postgresql+odbc://h/d"),
            Invalid::Driver("odbc".into())
        );
        assert_eq!(error("postgresql://h"), Invalid::NoDatabase);
        assert_eq!(error("postgresql://a,b/d"), Invalid::SeveralHosts);
        assert_eq!(error("postgresql://h:99999/d"), Invalid::Port);
        assert_eq!(error("postgresql://u:%ff@h/d"), Invalid::Encoding);
        for password in ["20?hidden", "20/hidden", "20#hidden"] {
            let text = format!("postgresql://u:{password}@h/d");
            assert_eq!(error(&text), Invalid::NotEncoded);
        }
        assert_eq!(error("voices.db"), Invalid::NoScheme);
        assert_eq!(
            error("sqlite:///a.db?mode=ro"),
            Invalid::Parameter("mode".into())
        );
        assert_eq!(error("sqlite://"), Invalid::NoDatabase);
        assert_eq!(error("sqlite:///:memory:"), Invalid::InMemory);
    }

    #[test]
    fn sqlite_paths_are_read_like_sqlalchemy_reads_them() {
        assert_eq!(path("sqlite:///relative.db"), PathBuf::from("relative.db"));
        assert_eq!(path("sqlite://relative.db"), PathBuf::from("relative.db"));
        assert_eq!(
            path("sqlite:////var/lib/app.db"),
            PathBuf::from("/var/lib/app.db")
        );
        assert_eq!(
            path("sqlite+aiosqlite:///./a%20b.db?timeout=5"),
            PathBuf::from("./a b.db")
        );
    }

    proptest! {
        #[test]
        fn parsing_any_url_never_panics_or_reveals_the_password(password in "[a-zA-Z0-9]{12}", tail in ".{0,40}") {
            for text in [
                format!("postgresql://user:{password}@{tail}"),
                format!("postgresql://user:{password}@host/db?{tail}"),
                format!("mysql://user:{password}@{tail}"),
            ] {
                if let Err(error) = DatabaseUrl::parse(&text) {
                    prop_assert!(!error.to_string().contains(&password));
                }
            }
        }
    }
}
