//! Compiled matches of texts and paths, shared by policies and routes.

use regex::Regex;
use weft_proto::{PathMatch, ValueMatch, path_match, value_match};

/// Memory that a compiled expression may take, in bytes.
const REGEX_SIZE: usize = 256 * 1024;

/// Why a policy or route cannot be put in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// An expression that does not compile, or too large.
    #[error("{expression:?} is not a usable regular expression: {why}")]
    Regex {
        /// As written.
        expression: String,
        /// The compiler's words.
        why: String,
    },
    /// An address range that does not parse.
    #[error("{0:?} is not an address range (like 192.0.2.0/24)")]
    Cidr(String),
    /// A part that must be there is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// A whole-value expression, as the Gateway API's `RegularExpression` is used.
pub(crate) fn anchored(expression: &str) -> Result<Regex, PolicyError> {
    regex::RegexBuilder::new(&format!("^(?:{expression})$"))
        .size_limit(REGEX_SIZE)
        .build()
        .map_err(|e| PolicyError::Regex {
            expression: expression.to_owned(),
            why: e.to_string(),
        })
}

#[derive(Debug)]
pub(crate) enum Text {
    Exact(String),
    Regex(Regex),
}

impl Text {
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// A header or query parameter by name.
#[derive(Debug)]
pub(crate) struct Named {
    pub name: String,
    pub value: Text,
}

impl Named {
    pub fn compile(proto: &ValueMatch, lower_case: bool) -> Result<Self, PolicyError> {
        let value = match proto.kind() {
            value_match::Kind::Exact => Text::Exact(proto.value.clone()),
            value_match::Kind::Regex => Text::Regex(anchored(&proto.value)?),
        };
        let name = if lower_case {
            proto.name.to_ascii_lowercase()
        } else {
            proto.name.clone()
        };
        Ok(Self { name, value })
    }
}

#[derive(Debug)]
pub(crate) enum Path {
    Exact(String),
    /// Without a trailing slash; empty matches every path.
    Prefix(String),
    Regex(Regex),
}

impl Path {
    pub fn compile(proto: &PathMatch) -> Result<Self, PolicyError> {
        Ok(match proto.kind() {
            path_match::Kind::Exact => Self::Exact(proto.value.clone()),
            path_match::Kind::Prefix => Self::Prefix(proto.value.trim_end_matches('/').to_owned()),
            path_match::Kind::Regex => Self::Regex(anchored(&proto.value)?),
        })
    }

    /// Prefixes match whole path elements (Gateway API, `PathPrefix`).
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == path,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// `example.org`, `*.example.org` or `*`, compared without case and port.
pub(crate) fn host_matches(pattern: &str, host: &str) -> bool {
    let host = without_port(host);
    if pattern == "*" {
        return !host.is_empty();
    }
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            let cut = host.len().saturating_sub(suffix.len());
            cut > 0
                && host
                    .get(cut..)
                    .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        }
        None => host.eq_ignore_ascii_case(pattern),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_case_and_port() {
        assert!(host_matches("shop.example", "Shop.Example:8080"));
        assert!(host_matches("*.example", "a.b.example"));
        assert!(!host_matches("*.example", "example"));
        assert!(!host_matches("*.example", ".example"));
        assert!(!host_matches("shop.example", "xshop.example"));
        assert!(host_matches("*", "anything"));
        assert!(host_matches("[::1]", "[::1]:80"));
    }

    #[test]
    fn a_prefix_matches_whole_elements() {
        let path = |value: &str| Path::Prefix(value.trim_end_matches('/').to_owned());
        assert!(path("/api").matches("/api"));
        assert!(path("/api/").matches("/api/x"));
        assert!(!path("/api").matches("/apix"));
        assert!(path("/").matches("/anything"));
    }
}
