//! Hosts and origins: the names by which the server may be called, and the web pages that may use it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The hosts and web pages that are served besides the server's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessConfig {
    /// Names by which the server may be called, besides IP addresses and `localhost`.
    pub allowed_hosts: Vec<AllowedHost>,
    /// Origins of web pages that may use the server, besides its own pages.
    pub cors_origins: Vec<CorsOrigin>,
}

impl AccessConfig {
    /// Whether the server may be called `host`.
    pub fn serves_host(&self, host: &Host) -> bool {
        match host {
            Host::Ip(_) => true,
            Host::Name(name) => {
                name == "localhost"
                    || self.allowed_hosts.iter().any(|allowed| match allowed {
                        AllowedHost::Any => true,
                        AllowedHost::Name(own) => own == name,
                    })
            }
        }
    }

    /// Whether every origin may use the server.
    pub fn serves_any_origin(&self) -> bool {
        self.cors_origins.contains(&CorsOrigin::Any)
    }

    /// Whether web pages of `origin` may use the server.
    pub fn serves_origin(&self, origin: &WebOrigin) -> bool {
        self.cors_origins.iter().any(|allowed| match allowed {
            CorsOrigin::Any => true,
            CorsOrigin::Exact(own) => own == origin,
        })
    }
}

/// A value of `--allowed-host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHost {
    /// Any host, `*`.
    Any,
    /// A host name in lower case.
    Name(String),
}

impl AllowedHost {
    /// Parses a host name without a port, or `*`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        match Authority::parse(text) {
            _ if text == "*" => Ok(Self::Any),
            Some(Authority { host: Host::Name(name), port: None }) => Ok(Self::Name(name)),
            Some(Authority { host: Host::Ip(_), .. }) => Err("IP addresses are always allowed".to_owned()),
            _ => Err("expected a host name without a port, such as llm.example.com, or *".to_owned()),
        }
    }
}

/// A value of `--cors-origin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigin {
    /// Any origin, `*`.
    Any,
    /// One origin.
    Exact(WebOrigin),
}

impl CorsOrigin {
    /// Parses an origin, `null` (the origin of local files and of sandboxed frames), or `*`.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        WebOrigin::parse(text).map(Self::Exact).ok_or_else(|| {
            "expected the origin of web pages without a path, such as https://app.example.com, or *"
                .to_owned()
        })
    }
}

/// The form of a `Host` header: a host and, if given, a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port, if given.
    pub port: Option<u16>,
}

/// A host in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A name in lower case, without a dot at its end.
    Name(String),
}

impl Authority {
    /// Parses a host and an optional port. None if it has another form, such as one with a user name.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                // A zone selects an interface of this machine and is not part of the address.
                let address = address.split_once('%').map_or(address, |(address, _)| address);
                (Host::Ip(address.parse::<Ipv6Addr>().ok()?.into()), port)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                let (name, port) = text.split_at(end);
                let address = name.parse::<Ipv4Addr>().map(|address| Host::Ip(address.into()));
                (address.ok().or_else(|| host_name(name))?, port)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            _ => return None,
        };
        Some(Self { host, port })
    }
}

/// The longest name of a host in DNS.
const MAX_NAME_BYTES: usize = 253;

fn host_name(text: &str) -> Option<Host> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(is_allowed);
    let is_name = name.len() <= MAX_NAME_BYTES && name.split('.').all(is_label);
    is_name.then(|| Host::Name(name.to_ascii_lowercase()))
}

/// The origin of a web page, as browsers send it: a scheme, a host and perhaps a port, or `null`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebOrigin {
    /// The origin of a page without one, such as a local file or a sandboxed frame.
    Null,
    /// The origin of a web page. The port is explicit.
    Web {
        /// `http` or `https`.
        scheme: String,
        /// The host.
        host: Host,
        /// The port.
        port: u16,
    },
    /// The origin of an application or a browser extension, in lower case.
    Other(String),
}

/// The longest origin that is read.
const MAX_ORIGIN_BYTES: usize = 512;

impl WebOrigin {
    /// Parses an origin. None if it has another form, such as one with a path.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "null" {
            return Some(Self::Null);
        }
        let (scheme, rest) = text.split_once("://").filter(|_| text.len() <= MAX_ORIGIN_BYTES)?;
        let scheme = scheme.to_ascii_lowercase();
        if let Some(default) = default_port(&scheme) {
            let Authority { host, port } = Authority::parse(rest)?;
            return Some(Self::Web { scheme, host, port: port.unwrap_or(default) });
        }
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        let is_rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
        let is_origin = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(is_scheme)
            && !rest.is_empty()
            && rest.bytes().all(is_rest);
        is_origin.then(|| Self::Other(format!("{scheme}://{}", rest.to_ascii_lowercase())))
    }

    /// Whether pages of this origin come from `own`, the host that the request is for.
    pub fn is_at(&self, own: &Authority) -> bool {
        match self {
            Self::Web { scheme, host, port } => {
                *host == own.host && own.port.or_else(|| default_port(scheme)) == Some(*port)
            }
            Self::Null | Self::Other(_) => false,
        }
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_canonical() {
        let host = |text: &str| Authority::parse(text).map(|authority| (authority.host, authority.port));
        let ip = |text: &str| Host::Ip(text.parse().unwrap());
        let name = |text: &str| Host::Name(text.to_owned());
        for (text, expected) in [
            ("127.0.0.1:8080", (ip("127.0.0.1"), Some(8080))),
            ("[::1]:8080", (ip("::1"), Some(8080))),
            ("[fe80::1%25eth0]", (ip("fe80::1"), None)),
            ("LocalHost:", (name("localhost"), None)),
            ("localhost.:80", (name("localhost"), Some(80))),
            ("my_service.ns.svc", (name("my_service.ns.svc"), None)),
            ("127.1", (name("127.1"), None)),
            ("2130706433", (name("2130706433"), None)),
        ] {
            assert_eq!(host(text), Some(expected), "{text}");
        }
        for wrong in [
            "",
            ":80",
            ".",
            "a..b",
            "a b",
            "a/b",
            "user@localhost",
            "localhost:80:80",
            "localhost:+80",
            "localhost:99999",
            "::1",
            "[::1",
            "[localhost]",
            "[::1]x",
            "[::1].evil.com",
            "é",
            "a%62",
            "a\tb",
        ] {
            assert_eq!(host(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_named_hosts_addresses_and_localhost_are_served() {
        let allowed_hosts = vec![AllowedHost::parse("LLM.example.com").unwrap()];
        let access = AccessConfig { allowed_hosts, ..AccessConfig::default() };
        let serves = |text: &str| access.serves_host(&Authority::parse(text).unwrap().host);
        for own in ["10.0.0.7", "[::1]:1", "localhost:8080", "llm.example.com.", "LLM.EXAMPLE.COM:8080"] {
            assert!(serves(own), "{own}");
        }
        for other in ["example.com", "x.llm.example.com", "localhost.evil.com", "127.1", "0x7f000001"] {
            assert!(!serves(other), "{other}");
        }
        let any = AccessConfig { allowed_hosts: vec![AllowedHost::Any], ..AccessConfig::default() };
        assert!(any.serves_host(&Host::Name("evil.com".to_owned())));
        for wrong in ["?", "", "llm.example.com:80", "https://llm", "10.0.0.7", "*.example.com"] {
            assert!(AllowedHost::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn origins_are_compared_with_their_ports() {
        let origin = |text: &str| WebOrigin::parse(text).unwrap();
        assert_eq!(origin("https://App.example.com:443"), origin("HTTPS://app.example.com"));
        assert_ne!(origin("http://app.example.com"), origin("https://app.example.com"));
        assert_ne!(origin("http://localhost:3000"), origin("http://localhost:3001"));
        for wrong in
            ["", "*", "app.example.com", "https://", "https://a/", "https://a/b", "https://a@b", "NULL"]
        {
            assert_eq!(WebOrigin::parse(wrong), None, "{wrong}");
            assert!(wrong == "*" || CorsOrigin::parse(wrong).is_err(), "{wrong}");
        }
        for (page, own, is_own) in [
            ("http://localhost:8080", "localhost:8080", true),
            ("http://localhost", "localhost", true),
            ("https://llm.example.com", "llm.example.com", true),
            ("https://llm.example.com", "llm.example.com:443", true),
            ("http://[::1]:8080", "[::1]:8080", true),
            ("http://localhost:3000", "localhost:8080", false),
            ("http://127.0.0.1:8080", "localhost:8080", false),
            ("https://evil.com", "localhost:8080", false),
            ("null", "localhost:8080", false),
            ("chrome-extension://abc", "localhost:8080", false),
        ] {
            assert_eq!(origin(page).is_at(&Authority::parse(own).unwrap()), is_own, "{page} at {own}");
        }
    }

    #[test]
    fn any_origin_is_served_only_if_the_operator_says_so() {
        let access = |texts: &[&str]| {
            let cors_origins = texts.iter().map(|text| CorsOrigin::parse(text).unwrap()).collect();
            AccessConfig { cors_origins, ..AccessConfig::default() }
        };
        let app = access(&["https://app.example.com", "vscode-webview://Abc"]);
        for (text, is_served) in [
            ("https://app.example.com", true),
            ("vscode-webview://abc", true),
            ("https://app.example.com.evil.com", false),
            ("http://app.example.com", false),
            ("null", false),
        ] {
            assert_eq!(app.serves_origin(&WebOrigin::parse(text).unwrap()), is_served, "{text}");
        }
        assert!(!app.serves_any_origin() && access(&["*"]).serves_any_origin());
        assert!(
            access(&["*"]).serves_origin(&WebOrigin::Null)
                && access(&["null"]).serves_origin(&WebOrigin::Null)
        );
    }
}
