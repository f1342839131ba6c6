//! One TLS implementation for the whole process.
//!
//! HTTP, PostgreSQL and Redis all use rustls. If two cryptographic providers are compiled in and none is chosen,
//! rustls panics at the first connection. So one is chosen before that.

/// Selects ring. Further calls have no effect.
pub fn install() {
    // An error means that one is installed already.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
}
