//! Field blocks: heads and trailers to HPACK and back, with the checks of
//! RFC 9113 section 8.

use super::Dialect;
use super::hpack::{DecodeError, Decoder, put_field, put_field_lower, put_indexed, put_named};
use crate::http::fields::{Fields, Known, Span};
use crate::http::head::{RequestHead, ResponseHead, Version, usual_reason};

/// Most fields in a block.
const MAX_FIELDS: usize = 256;
/// Room for what a block's indices stand for, and for what routes and traces
/// add.
const ROOM: usize = 128;
const ROOM_FIELDS: usize = 16;
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
    method: Option<Span>,
    scheme: Option<Span>,
    authority: Option<Span>,
    path: Option<Span>,
    status: Option<Span>,
    reason: Option<Span>,
    weft: Option<Span>,
}

impl Parsed {
    fn text(&self, span: Option<Span>) -> Option<&[u8]> {
        span.map(|span| self.fields.text(span))
    }
}

fn parse(decoder: &mut Decoder, block: &[u8], dialect: Dialect) -> Result<Parsed, BlockError> {
    let mut parsed = Parsed {
        fields: Fields::with_room(block.len() + ROOM, ROOM_FIELDS),
        ..Parsed::default()
    };
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
            *slot = Some(parsed.fields.keep(value));
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

/// Bytes of a name: 1 in every dialect, 2 in the mesh's only.
static TOKEN: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' => 1,
            b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => 1,
            b'A'..=b'Z' => 2,
            _ => 4,
        };
        byte += 1;
    }
    table
};

fn is_name(name: &[u8], dialect: Dialect) -> bool {
    let seen = name.iter().fold(0, |seen, &b| {
        seen | TOKEN.get(usize::from(b)).copied().unwrap_or(4)
    });
    match dialect {
        Dialect::Standard => seen == 1,
        Dialect::Mesh => seen == 1 || seen == 2 || seen == 3,
    }
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
    let parsed = parse(decoder, block, dialect)?;
    let (Some(method), None, None) = (parsed.method, parsed.status, parsed.reason) else {
        return Err(BlockError::Malformed);
    };
    let connect = parsed.text(parsed.method) == Some(b"CONNECT");
    let https = parsed.text(parsed.scheme) == Some(b"https");
    let mut head = RequestHead::default();
    head.version = match parsed.text(parsed.weft) {
        None => Version::H2,
        Some(b"1") => Version::H11,
        Some(b"0") => Version::H10,
        Some(_) => return Err(BlockError::Malformed),
    };
    head.fields = parsed.fields;
    head.set_method(method);
    match (parsed.path, parsed.scheme) {
        (Some(path), Some(_)) if !connect => {
            head.set_target(path).map_err(|_| BlockError::Malformed)?;
            if https {
                head.set_https();
            }
        }
        (None, None) if connect => {}
        _ => return Err(BlockError::Malformed),
    }
    let host = head.fields.known(Known::Host).next();
    let authority = parsed.authority.map(|a| head.fields.text(a));
    let differ = |(a, h): (&[u8], &[u8])| !a.eq_ignore_ascii_case(h);
    if (dialect == Dialect::Standard && authority.zip(host).is_some_and(differ))
        || !is_authority(authority.or(host).unwrap_or_default())
    {
        return Err(BlockError::Malformed);
    }
    let authority = match (parsed.authority, host.map(<[u8]>::to_vec)) {
        (Some(authority), _) => authority,
        (None, host) => head.fields.keep(&host.unwrap_or_default()),
    };
    head.set_authority(authority);
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
    let of_requests = [parsed.method, parsed.path, parsed.scheme, parsed.authority];
    if of_requests.iter().any(Option::is_some) {
        return Err(BlockError::Malformed);
    }
    let status = match parsed.text(parsed.status) {
        Some(&[a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
            let digit = |d: u8| u16::from(d - b'0');
            digit(a) * 100 + digit(b) * 10 + digit(c)
        }
        _ => return Err(BlockError::Malformed),
    };
    let version = match parsed.text(parsed.weft) {
        Some(b"1") => Version::H11,
        Some(b"0") => Version::H10,
        _ => Version::H2,
    };
    let mut head = ResponseHead::new(status, version);
    if let Some(reason) = parsed.reason
        && is_value(parsed.fields.text(reason))
    {
        head.set_reason(reason);
    }
    head.fields = parsed.fields;
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
        parsed.method,
        parsed.scheme,
        parsed.authority,
        parsed.path,
        parsed.status,
        parsed.reason,
        parsed.weft,
    ];
    if pseudo.iter().any(Option::is_some) {
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
