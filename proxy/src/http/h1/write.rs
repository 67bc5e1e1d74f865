//! Heads to bytes: what came in is written anew, in its order and case, with
//! one unambiguous framing.

use super::body::Framing;
use crate::http::fields::{Fields, Known};
use crate::http::head::{RequestHead, ResponseHead, Version, usual_reason};

pub(super) fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a request's head. `framing` is that of the body to follow.
pub fn put_request(out: &mut Vec<u8>, head: &RequestHead, framing: Framing) {
    out.extend_from_slice(head.method_bytes());
    out.push(b' ');
    if head.method_bytes() == b"CONNECT" {
        out.extend_from_slice(head.authority_bytes());
    } else {
        out.extend_from_slice(head.path_bytes());
        if let Some(query) = head.query_bytes() {
            out.push(b'?');
            out.extend_from_slice(query);
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if !head.authority_bytes().is_empty() || head.version != Version::H10 {
        put_field(out, b"Host", head.authority_bytes());
    }
    let upgrade = head.fields.has(Known::Upgrade);
    put_fields(out, &head.fields);
    put_framing(out, &head.fields, framing);
    if upgrade {
        put_field(out, b"Connection", b"Upgrade");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a response's head for a client of this version. `close`: the
/// connection ends after it.
pub fn put_response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    framing: Framing,
    client: Version,
    close: bool,
) {
    let version: &[u8] = match client {
        Version::H10 => b"HTTP/1.0 ",
        _ => b"HTTP/1.1 ",
    };
    out.extend_from_slice(version);
    let digits = [
        head.status / 100 % 10,
        head.status / 10 % 10,
        head.status % 10,
    ];
    out.extend(digits.map(|d| b'0' + d as u8));
    out.push(b' ');
    match head.reason() {
        b"" => out.extend_from_slice(usual_reason(head.status).as_bytes()),
        reason => out.extend_from_slice(reason),
    }
    out.extend_from_slice(b"\r\n");
    put_fields(out, &head.fields);
    put_framing(out, &head.fields, framing);
    if head.status == 101 {
        put_field(out, b"Connection", b"Upgrade");
    } else if close && !head.is_interim() {
        put_field(out, b"Connection", b"close");
    } else if client == Version::H10 {
        put_field(out, b"Connection", b"keep-alive");
    }
    out.extend_from_slice(b"\r\n");
}

/// What ends at this hop is left out; `Connection` is written anew.
fn put_fields(out: &mut Vec<u8>, fields: &Fields) {
    for field in fields.iter() {
        match field.known {
            Known::TransferEncoding | Known::Connection | Known::HopByHop | Known::Host => {}
            Known::Te if !crate::http::h2_contains_token(field.value, b"trailers") => {}
            _ => put_field(out, field.name, field.value),
        }
    }
}

/// `Content-Length` is passed on as a field; a body of known length without
/// one does not happen but for responses made here.
fn put_framing(out: &mut Vec<u8>, fields: &Fields, framing: Framing) {
    match framing {
        Framing::Chunked => put_field(out, b"Transfer-Encoding", b"chunked"),
        Framing::Length(length) if !fields.has(Known::ContentLength) => {
            put_field(out, b"Content-Length", length.to_string().as_bytes());
        }
        _ => {}
    }
}
