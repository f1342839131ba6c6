//! The host names under which the page may be opened. Pure.
//!
//! A malicious site can point its own name to the daemon's address, and then read the page in a visitor's browser as if
//! it were its own (DNS rebinding). The request contains the site's name in its `Host` header. Addresses are allowed
//! because they cannot be rebound.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Host names, in lower case.
#[derive(Debug)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Allows these names, in addition to localhost and all addresses.
    pub fn new(mut names: Vec<String>) -> Self {
        names
            .iter_mut()
            .for_each(|name| name.make_ascii_lowercase());
        Self(names)
    }

    /// Whether a request with this `Host` header may read the page.
    pub(super) fn allow(&self, host: &str) -> bool {
        let address = host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((address, _port)) = address {
            return address.parse::<Ipv6Addr>().is_ok();
        }
        let name = host.split_once(':').map_or(host, |(name, _port)| name);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        name == "localhost" || name.parse::<Ipv4Addr>().is_ok() || self.0.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_configured_names_are_allowed() {
        let hosts = AllowedHosts::new(vec!["Voices.example.com".to_owned()]);
        for host in [
            "localhost",
            "LOCALHOST:9090",
            "localhost.:9090",
            "127.0.0.1:9090",
            "10.1.2.3",
            "[::1]:9090",
            "[fe80::1]",
            "voices.example.com:9090",
            "VOICES.example.com",
        ] {
            assert!(hosts.allow(host), "{host}");
        }
        for host in [
            "",
            ":9090",
            "evil.example",
            "evil.example:9090",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "[evil.example]:9090",
            "[::1",
            "voices.example.com.evil.example",
            "127.0.0.1@evil.example",
        ] {
            assert!(!hosts.allow(host), "{host}");
        }
    }
}
