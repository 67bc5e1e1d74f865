//! Heads of requests and responses, the same for every HTTP version.

use std::borrow::Cow;

use weft_policy::RequestView;
use weft_policy::path::{PathError, normalize};
use weft_policy::url::change_path;
use weft_proto::Rewrite;

use super::fields::{Fields, Known, Span};

/// The version that the application speaks. It is the same on both ends of the
/// mesh: a request leaves as what it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// HTTP/1.0.
    H10,
    /// HTTP/1.1.
    #[default]
    H11,
    /// HTTP/2.
    H2,
}

/// A request's head.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    /// Fields without `Host` and pseudo-fields, which are below.
    pub fields: Fields,
    /// What the application speaks.
    pub version: Version,
    method: Span,
    path: Span,
    query: Option<Span>,
    authority: Span,
    scheme_https: bool,
}

impl RequestHead {
    /// Sets the method, a text that `fields` keep.
    pub fn set_method(&mut self, method: Span) {
        self.method = method;
    }

    /// Sets path and query from a request target in origin form or `*`, a text
    /// that `fields` keep. The path is brought into its normal form.
    pub fn set_target(&mut self, target: Span) -> Result<(), PathError> {
        let text = self.fields.text(target);
        let text = text.split(|&b| b == b'#').next().unwrap_or_default();
        let mut parts = text.splitn(2, |&b| b == b'?');
        let path = parts.next().unwrap_or_default();
        let query = parts.next();
        if query.is_some_and(|q| q.iter().any(|&b| b <= b' ' || b == 0x7f)) {
            return Err(PathError::Character);
        }
        let (length, end) = (path.len(), text.len());
        let normal = match normalize(path)? {
            Cow::Borrowed(_) => None,
            Cow::Owned(path) => Some(path),
        };
        self.query = query.map(|_| target.part(length + 1..end));
        self.path = match normal {
            None => target.part(0..length),
            Some(path) => self.fields.keep(&path),
        };
        Ok(())
    }

    /// Sets host and port, a text that `fields` keep.
    pub fn set_authority(&mut self, authority: Span) {
        self.authority = authority;
    }

    /// Changes host and path as a route says. `matched`: the prefix that its
    /// match names.
    pub fn rewrite(&mut self, rewrite: &Rewrite, matched: &str) {
        if !rewrite.hostname.is_empty() {
            self.authority = self.fields.keep(rewrite.hostname.as_bytes());
        }
        if let Some(change) = &rewrite.path {
            let mut target = change_path(self.path(), matched, change);
            if let Some(query) = self.query() {
                target.push('?');
                target.push_str(query);
            }
            let target = self.fields.keep(target.as_bytes());
            // A route with a path that is none was refused with the route.
            let _ = self.set_target(target);
        }
    }

    /// Says that the scheme is `https`.
    pub fn set_https(&mut self) {
        self.scheme_https = true;
    }

    /// The scheme.
    pub fn scheme(&self) -> &'static str {
        if self.scheme_https { "https" } else { "http" }
    }

    /// The method, as bytes.
    pub fn method_bytes(&self) -> &[u8] {
        self.fields.text(self.method)
    }

    /// The path, as bytes.
    pub fn path_bytes(&self) -> &[u8] {
        self.fields.text(self.path)
    }

    /// The query, as bytes.
    pub fn query_bytes(&self) -> Option<&[u8]> {
        self.query.map(|q| self.fields.text(q))
    }

    /// Host and port, as bytes.
    pub fn authority_bytes(&self) -> &[u8] {
        self.fields.text(self.authority)
    }

    /// Whether it is a gRPC call.
    pub fn is_grpc(&self) -> bool {
        self.version == Version::H2
            && self
                .fields
                .named("content-type")
                .any(|v| v.starts_with(b"application/grpc"))
    }

    /// Whether it asks to leave HTTP: an upgrade, or CONNECT.
    pub fn wants_tunnel(&self) -> bool {
        self.fields.has(Known::Upgrade) || self.method_bytes() == b"CONNECT"
    }

    /// Whether its method may be sent twice (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(
            self.method_bytes(),
            b"GET" | b"HEAD" | b"PUT" | b"DELETE" | b"OPTIONS" | b"TRACE"
        )
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl RequestView for RequestHead {
    fn method(&self) -> &str {
        text(self.method_bytes())
    }

    fn path(&self) -> &str {
        text(self.path_bytes())
    }

    fn query(&self) -> Option<&str> {
        self.query_bytes().map(text)
    }

    fn host(&self) -> &str {
        text(self.authority_bytes())
    }

    fn any_header(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
        if name == "host" {
            return test(self.host());
        }
        self.fields.named(name).any(|value| test(text(value)))
    }
}

/// A response's head.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// Its fields.
    pub fields: Fields,
    /// The version that the other side speaks.
    pub version: Version,
    /// 100 to 599.
    pub status: u16,
    reason: Span,
}

impl ResponseHead {
    /// A head without fields.
    pub fn new(status: u16, version: Version) -> Self {
        Self {
            status,
            version,
            ..Self::default()
        }
    }

    /// Sets the reason phrase, a text that `fields` keep.
    pub fn set_reason(&mut self, reason: Span) {
        self.reason = reason;
    }

    /// The reason phrase as it came; empty if none did.
    pub fn reason(&self) -> &[u8] {
        self.fields.text(self.reason)
    }

    /// 1xx other than 101: another head follows.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Whether a body can follow (RFC 9112 section 6.3).
    pub fn can_have_body(&self, request_method: &[u8]) -> bool {
        !(request_method == b"HEAD" || matches!(self.status, 100..=199 | 204 | 304))
    }
}

/// The usual reason phrase of a status; empty for unusual ones.
pub fn usual_reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or_default()
}
