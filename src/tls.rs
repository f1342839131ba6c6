//! One TLS implementation for everything in the process.
//!
//! HTTP, PostgreSQL and Redis all use rustls. Where it finds two cryptographic providers compiled
//! in and none chosen, it panics at the first connection; so one is chosen before any.

/// Chooses ring. Calling it again changes nothing.
pub fn install() {
    // An error says that one is installed already, which is what is wanted.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
}
