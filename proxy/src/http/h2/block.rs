//! Field blocks: heads and trailers to HPACK and back, with the checks of
//! RFC 9113 section 8.

use super::Dialect;
use super::hpack::{DecodeError, Decoder, put_field, put_field_lower, put_indexed, put_named};
use crate::http::fields::{Fields, Known};
use crate::http::head::{RequestHead, ResponseHead, Version, usual_reason};

/// Most fields in a block.
const MAX_FIELDS: usize = 256;
/// Largest field list accepted, counted as RFC 9113 section 6.5.2 does.
pub const MAX_LIST: usize = 64 * 1024;

/// Why a block is not a message's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockError {
    /// The connection's state is lost.
    Compression,
    /// The stream is malformed (section 8.1.1).
    Malformed,
    /// More than is accepted.
    TooLarge,
}

impl From<DecodeError> for BlockError {
    fn from(_: DecodeError) -> Self {
        Self::Compression
    }
}

/// What a block turned out to hold. Which one it must be, the caller knows.
#[derive(Default)]
struct Parsed {
    fields: Fields,
    method: Option<Vec<u8>>,
    scheme: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    status: Option<Vec<u8>>,
    reason: Option<Vec<u8>>,
    weft: Option<Vec<u8>>,
}

fn parse(decoder: &mut Decoder, block: &[u8], dialect: Dialect) -> Result<Parsed, BlockError> {
    let mut parsed = Parsed::default();
    let mut size = 0;
    let mut malformed = false;
    decoder.decode(block, |name, value| {
        size += name.len() + value.len() + 32;
        if size > MAX_LIST || parsed.fields.len() >= MAX_FIELDS {
            return;
        }
        if name.first() == Some(&b':') {
            let slot = match (name, dialect) {
                (b":method", _) => &mut parsed.method,
                (b":scheme", _) => &mut parsed.scheme,
                (b":authority", _) => &mut parsed.authority,
                (b":path", _) => &mut parsed.path,
                (b":status", _) => &mut parsed.status,
                (b":reason", Dialect::Mesh) => &mut parsed.reason,
                (b":weft", Dialect::Mesh) => &mut parsed.weft,
                _ => {
                    malformed = true;
                    return;
                }
            };
            // Pseudo-fields come first, each once (section 8.3).
            malformed |= slot.is_some() || parsed.fields.len() > 0;
            *slot = Some(value.to_vec());
        } else {
            malformed |= !is_name(name, dialect) || !is_value(value);
            parsed.fields.push(name, value);
        }
    })?;
    if size > MAX_LIST || parsed.fields.len() >= MAX_FIELDS {
        return Err(BlockError::TooLarge);
    }
    if malformed || (dialect == Dialect::Standard && has_connection_fields(&parsed.fields)) {
        return Err(BlockError::Malformed);
    }
    Ok(parsed)
}

fn is_name(name: &[u8], dialect: Dialect) -> bool {
    let token = |b: &u8| {
        b.is_ascii_lowercase()
            || b.is_ascii_digit()
            || (dialect == Dialect::Mesh && b.is_ascii_uppercase())
            || b"!#$%&'*+-.^_`|~".contains(b)
    };
    !name.is_empty() && name.iter().all(token)
}

fn is_value(value: &[u8]) -> bool {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    !blank(value.first())
        && !blank(value.last())
        && value
            .iter()
            .all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f))
}

/// Section 8.2.2.
fn has_connection_fields(fields: &Fields) -> bool {
    fields.iter().any(|f| match f.known {
        Known::Connection | Known::TransferEncoding | Known::Upgrade | Known::HopByHop => true,
        Known::Te => !f.value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    })
}

/// Reads a request's head (section 8.3.1).
pub fn parse_request(
    decoder: &mut Decoder,
    block: &[u8],
    dialect: Dialect,
) -> Result<RequestHead, BlockError> {
    let mut parsed = parse(decoder, block, dialect)?;
    let fields = std::mem::take(&mut parsed.fields);
    let Parsed {
        method: Some(method),
        status: None,
        reason: None,
        ..
    } = &parsed
    else {
        return Err(BlockError::Malformed);
    };
    let connect = method == b"CONNECT";
    let version = match parsed.weft.as_deref() {
        None => Version::H2,
        Some(b"1") => Version::H11,
        Some(b"0") => Version::H10,
        Some(_) => return Err(BlockError::Malformed),
    };
    let mut head = RequestHead::default();
    head.version = version;
    head.fields = fields;
    head.set_method(method);
    match (&parsed.path, &parsed.scheme) {
        (Some(path), Some(scheme)) if !connect => {
            head.set_target(path).map_err(|_| BlockError::Malformed)?;
            if scheme == b"https" {
                head.set_https();
            }
        }
        (None, None) if connect => {}
        _ => return Err(BlockError::Malformed),
    }
    let host = head.fields.known(Known::Host).next().map(<[u8]>::to_vec);
    let authority = match (parsed.authority, host) {
        (Some(a), Some(h)) if dialect == Dialect::Standard && !a.eq_ignore_ascii_case(&h) => {
            return Err(BlockError::Malformed);
        }
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) => Vec::new(),
    };
    if !is_authority(&authority) {
        return Err(BlockError::Malformed);
    }
    head.set_authority(&authority);
    head.fields.remove("host");
    Ok(head)
}

/// A host and port without userinfo; bytes that end a host elsewhere are refused.
pub fn is_authority(text: &[u8]) -> bool {
    text.iter()
        .all(|&b| b > b' ' && b < 0x7f && !b"@/?#\\<>\"{}|^`".contains(&b))
}

/// Reads a response's head (section 8.3.2).
pub fn parse_response(
    decoder: &mut Decoder,
    block: &[u8],
    dialect: Dialect,
) -> Result<ResponseHead, BlockError> {
    let parsed = parse(decoder, block, dialect)?;
    let Parsed {
        status: Some(status),
        method: None,
        path: None,
        scheme: None,
        authority: None,
        ..
    } = &parsed
    else {
        return Err(BlockError::Malformed);
    };
    let status = std::str::from_utf8(status)
        .ok()
        .filter(|s| s.len() == 3)
        .and_then(|s| s.parse::<u16>().ok())
        .filter(|s| (100..600).contains(s))
        .ok_or(BlockError::Malformed)?;
    let version = match parsed.weft.as_deref() {
        Some(b"1") => Version::H11,
        Some(b"0") => Version::H10,
        _ => Version::H2,
    };
    let mut head = ResponseHead::new(status, version);
    head.fields = parsed.fields;
    if let Some(reason) = parsed.reason.filter(|r| is_value(r)) {
        head.set_reason(&reason);
    }
    Ok(head)
}

/// Reads trailers (section 8.1).
pub fn parse_trailers(
    decoder: &mut Decoder,
    block: &[u8],
    dialect: Dialect,
) -> Result<Fields, BlockError> {
    let parsed = parse(decoder, block, dialect)?;
    let pseudo = [
        &parsed.method,
        &parsed.scheme,
        &parsed.authority,
        &parsed.path,
        &parsed.status,
        &parsed.reason,
        &parsed.weft,
    ];
    if pseudo.iter().any(|p| p.is_some()) {
        return Err(BlockError::Malformed);
    }
    Ok(parsed.fields)
}

/// What `:weft` says; `None` where HTTP/2 is spoken throughout.
fn weft_version(version: Version) -> Option<&'static [u8]> {
    match version {
        Version::H10 => Some(b"0"),
        Version::H11 => Some(b"1"),
        Version::H2 => None,
    }
}

/// Writes a request's head.
pub fn put_request(out: &mut Vec<u8>, head: &RequestHead, dialect: Dialect) {
    match head.method_bytes() {
        b"GET" => put_indexed(out, 2),
        b"POST" => put_indexed(out, 3),
        method => put_named(out, 2, method),
    }
    if head.method_bytes() != b"CONNECT" {
        put_indexed(out, if head.scheme() == "https" { 7 } else { 6 });
        put_path(out, head);
    }
    if !head.authority_bytes().is_empty() {
        put_named(out, 1, head.authority_bytes());
    }
    if dialect == Dialect::Mesh
        && let Some(version) = weft_version(head.version)
    {
        put_field(out, b":weft", version);
    }
    put_fields(out, &head.fields, dialect);
}

fn put_path(out: &mut Vec<u8>, head: &RequestHead) {
    match (head.path_bytes(), head.query_bytes()) {
        (b"/", None) => put_indexed(out, 4),
        (path, None) => put_named(out, 4, path),
        (path, Some(query)) => put_named(out, 4, &[path, b"?", query].concat()),
    }
}

/// Writes a response's head.
pub fn put_response(out: &mut Vec<u8>, head: &ResponseHead, dialect: Dialect) {
    const INDEXED: [(u16, u8); 7] = [
        (200, 8),
        (204, 9),
        (206, 10),
        (304, 11),
        (400, 12),
        (404, 13),
        (500, 14),
    ];
    match INDEXED.iter().find(|(status, _)| *status == head.status) {
        Some((_, index)) => put_indexed(out, *index),
        None => put_named(out, 8, head.status.to_string().as_bytes()),
    }
    if dialect == Dialect::Mesh {
        if let Some(version) = weft_version(head.version) {
            put_field(out, b":weft", version);
        }
        if !head.reason().is_empty() && head.reason() != usual_reason(head.status).as_bytes() {
            put_field(out, b":reason", head.reason());
        }
    }
    put_fields(out, &head.fields, dialect);
}

/// Writes trailers, or the plain fields of a head. What ends at this hop is
/// left out; between proxies `Upgrade` goes along, for WebSocket.
pub fn put_fields(out: &mut Vec<u8>, fields: &Fields, dialect: Dialect) {
    for field in fields.iter() {
        match field.known {
            Known::TransferEncoding | Known::HopByHop | Known::Host => continue,
            Known::Te if !contains_token(field.value, b"trailers") => continue,
            Known::Te => {
                put_field(out, b"te", b"trailers");
                continue;
            }
            Known::Connection => continue,
            Known::Upgrade if dialect == Dialect::Standard => continue,
            _ => {}
        }
        match dialect {
            Dialect::Mesh => put_field(out, field.name, field.value),
            Dialect::Standard => put_field_lower(out, field.name, field.value),
        }
    }
}

/// Whether a comma-separated list has a token, in any case.
pub fn contains_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|&b| b == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}
