//! Responses that the proxy makes itself.

use super::h1::Framing;
use super::head::{ResponseHead, Version};
use super::leg::Leg;
use crate::telemetry::Flag;

/// A response in place of the application's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalResponse {
    /// HTTP status.
    pub status: u16,
    /// Why.
    pub flag: Flag,
    /// For the caller: nothing that it may not know.
    pub text: &'static str,
    /// Where a redirect leads.
    pub location: Option<Box<str>>,
    /// To a HEAD request: a body would be taken for the next response.
    pub without_body: bool,
}

impl LocalResponse {
    /// A response with the status that its reason has.
    pub fn new(flag: Flag) -> Self {
        let (status, text) = match flag {
            Flag::None => (500, "internal error"),
            Flag::Denied => (403, "access denied"),
            Flag::PlaintextRefused => (403, "mutual TLS is required"),
            Flag::NoRoute => (404, "no route matches this request"),
            Flag::NoBackend => (500, "the route's backend does not exist"),
            Flag::NoEndpoint => (503, "the service has no endpoint"),
            Flag::ConnectFailure => (503, "no endpoint can be reached"),
            Flag::UpstreamReset => (502, "the connection was lost before an answer came"),
            Flag::Timeout => (504, "no answer came in time"),
            Flag::Malformed => (400, "this is not a valid request"),
            Flag::ClientGone => (499, "the caller went away"),
            Flag::PolicyChanged => (403, "access denied"),
            Flag::Redirected => (302, "redirected"),
        };
        Self {
            status,
            flag,
            text,
            location: None,
            without_body: false,
        }
    }

    /// Sends the caller somewhere else.
    pub fn redirect(status: u16, location: String) -> Self {
        Self {
            status,
            location: Some(location.into()),
            ..Self::new(Flag::Redirected)
        }
    }

    /// The gRPC status that says the same (gRPC's mapping of HTTP statuses).
    pub fn grpc_status(&self) -> u8 {
        match self.status {
            400 => 13,
            403 => 7,
            404 => 12,
            504 => 4,
            499 => 1,
            _ => 14,
        }
    }

    /// Sends it. `close`: an HTTP/1 connection ends after it.
    pub fn send(&self, to: &mut Leg, grpc: bool, client: Version, request_id: &str, close: bool) {
        let status = if grpc { 200 } else { self.status };
        let mut head = ResponseHead::new(status, client);
        let fields = &mut head.fields;
        fields.push(b"x-request-id", request_id.as_bytes());
        if let Some(location) = &self.location {
            fields.push(b"location", location.as_bytes());
        }
        if grpc {
            fields.push(b"content-type", b"application/grpc");
            fields.push(b"grpc-status", self.grpc_status().to_string().as_bytes());
            fields.push(b"grpc-message", self.text.as_bytes());
            to.send_response(&head, Framing::None, client, close);
            return;
        }
        let body = format!("weft: {} (request {request_id})\n", self.text);
        fields.push(b"content-type", b"text/plain");
        fields.push(b"content-length", body.len().to_string().as_bytes());
        fields.push(b"weft-response-flag", self.flag.as_str().as_bytes());
        if self.without_body {
            to.send_response(&head, Framing::None, client, close);
            return;
        }
        to.send_response(&head, Framing::Length(body.len() as u64), client, close);
        // A caller that is gone does not hear it.
        let _ = to.send_data(body.as_bytes());
        let _ = to.send_end(None);
    }
}
