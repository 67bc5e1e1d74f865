//! Heads from bytes. What two readers could understand differently is refused
//! (RFC 9112 section 11.2).

use std::mem::MaybeUninit;

use super::body::Framing;
use crate::http::fields::{Fields, Known};
use crate::http::head::{RequestHead, ResponseHead, Version};

/// Largest head, in bytes.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most fields in a head.
const MAX_FIELDS: usize = 128;
/// Room for fields that routes and traces add.
const SPARE_FIELDS: usize = 4;

/// Why a head is refused, and with which status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// 400.
    #[error("{0}")]
    Bad(&'static str),
    /// 431.
    #[error("the head is larger than {MAX_HEAD} bytes or has more than {MAX_FIELDS} fields")]
    TooLarge,
    /// 501.
    #[error("this transfer coding is not known")]
    Coding,
}

impl HeadError {
    /// The status that says it.
    pub fn status(self) -> u16 {
        match self {
            Self::Bad(_) => 400,
            Self::TooLarge => 431,
            Self::Coding => 501,
        }
    }
}

/// Whether bytes start as an HTTP/1 request does; `None`: too few to tell.
pub fn looks_like_request(bytes: &[u8]) -> Option<bool> {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"CONNECT ",
        b"OPTIONS ",
        b"TRACE ",
        b"PATCH ",
    ];
    if bytes.is_empty() {
        return None;
    }
    let mut undecided = false;
    for method in METHODS {
        if bytes.starts_with(method) {
            return Some(true);
        }
        undecided |= method.starts_with(bytes);
    }
    // Other methods are told by the version at the end of the line.
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let token = |b: &u8| b.is_ascii_uppercase() || b"-_".contains(b);
    let name = line.iter().take_while(|b| token(b)).count();
    if name == 0 || name > 24 || !matches!(line.get(name), None | Some(b' ')) {
        return if undecided { None } else { Some(false) };
    }
    if line.len() < bytes.len() {
        let line = line.trim_ascii_end();
        return Some(line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0"));
    }
    if line.len() > 8 * 1024 {
        Some(false)
    } else {
        None
    }
}

fn bad(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::HeaderName => {
            HeadError::Bad("a field's name has characters that are not allowed")
        }
        httparse::Error::HeaderValue => {
            HeadError::Bad("a field's value has characters that are not allowed")
        }
        httparse::Error::Version => HeadError::Bad("the HTTP version is not known"),
        _ => HeadError::Bad("this is not HTTP/1"),
    }
}

/// Parses a request's head into `head`, which is empty. Returns its length and
/// the framing of its body; `None`: its end has not come.
pub fn parse_request(
    bytes: &[u8],
    head: &mut RequestHead,
) -> Result<Option<(usize, Framing)>, HeadError> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let status = request
        .parse_with_uninit_headers(bytes, &mut headers)
        .map_err(bad)?;
    let httparse::Status::Complete(length) = status else {
        return if bytes.len() > MAX_HEAD {
            Err(HeadError::TooLarge)
        } else {
            Ok(None)
        };
    };
    if length > MAX_HEAD {
        return Err(HeadError::TooLarge);
    }
    head.version = if request.version == Some(1) {
        Version::H11
    } else {
        Version::H10
    };
    head.fields = Fields::with_room(length, request.headers.len() + SPARE_FIELDS);
    let method = request.method.unwrap_or_default().as_bytes();
    let method = head.fields.keep(method);
    head.set_method(method);
    let mut host: Option<&[u8]> = None;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("host") {
            if host.replace(header.value).is_some() {
                return Err(HeadError::Bad("there are several Host fields"));
            }
        } else {
            head.fields.push(header.name.as_bytes(), header.value);
        }
    }
    if host.is_none() && head.version == Version::H11 {
        return Err(HeadError::Bad("the Host field is missing"));
    }
    let target = request.path.unwrap_or_default().as_bytes();
    set_target(head, target, host.unwrap_or_default())?;
    let framing = request_framing(&head.fields, head.version)?;
    Ok(Some((length, framing)))
}

/// Origin, absolute, authority and asterisk form (RFC 9112 section 3.2).
fn set_target(head: &mut RequestHead, target: &[u8], host: &[u8]) -> Result<(), HeadError> {
    let path_error = |_| HeadError::Bad("the path is not allowed");
    let mut authority = host;
    if head.method_bytes() == b"CONNECT" {
        authority = target;
    } else if let Some(rest) = strip_scheme(target) {
        let end = rest
            .iter()
            .position(|b| b"/?".contains(b))
            .unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        authority = host;
        let path = match path.first() {
            Some(b'/') => head.fields.keep(path),
            _ => head.fields.keep(&[b"/", path].concat()),
        };
        head.set_target(path).map_err(path_error)?;
    } else {
        let target = head.fields.keep(target);
        head.set_target(target).map_err(path_error)?;
    }
    if !crate::http::h2_authority(authority) {
        return Err(HeadError::Bad(
            "the host has characters that are not allowed",
        ));
    }
    let authority = head.fields.keep(authority);
    head.set_authority(authority);
    Ok(())
}

fn strip_scheme(target: &[u8]) -> Option<&[u8]> {
    [&b"http://"[..], b"https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

/// The one length that all `Content-Length` fields agree on.
fn content_length(fields: &Fields) -> Result<Option<u64>, HeadError> {
    let mut length = None;
    for value in fields.known(Known::ContentLength) {
        let value = std::str::from_utf8(value)
            .ok()
            .filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|v| v.parse::<u64>().ok())
            .ok_or(HeadError::Bad("Content-Length is not a number"))?;
        if length.replace(value).is_some() {
            return Err(HeadError::Bad("there are several Content-Length fields"));
        }
    }
    Ok(length)
}

/// Whether the body is chunked. Any other coding is refused: to pass it on
/// would be to guess where the message ends.
fn is_chunked(fields: &Fields) -> Result<bool, HeadError> {
    let mut codings = fields.known(Known::TransferEncoding);
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(one), None) if one.eq_ignore_ascii_case(b"chunked") => Ok(true),
        (Some(_), None) => Err(HeadError::Coding),
        (Some(_), Some(_)) => Err(HeadError::Bad("there are several Transfer-Encoding fields")),
    }
}

fn request_framing(fields: &Fields, version: Version) -> Result<Framing, HeadError> {
    match (is_chunked(fields)?, content_length(fields)?) {
        (true, Some(_)) => Err(HeadError::Bad(
            "both Content-Length and Transfer-Encoding are given",
        )),
        (true, None) if version == Version::H10 => {
            Err(HeadError::Bad("Transfer-Encoding is not of HTTP/1.0"))
        }
        (true, None) => Ok(Framing::Chunked),
        (false, Some(0) | None) => Ok(Framing::None),
        (false, Some(length)) => Ok(Framing::Length(length)),
    }
}

/// Parses a response's head into `head`, which is empty.
pub fn parse_response(
    bytes: &[u8],
    head: &mut ResponseHead,
    request_method: &[u8],
) -> Result<Option<(usize, Framing)>, HeadError> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, bytes, &mut headers)
        .map_err(bad)?;
    let httparse::Status::Complete(length) = status else {
        return if bytes.len() > MAX_HEAD {
            Err(HeadError::TooLarge)
        } else {
            Ok(None)
        };
    };
    head.version = if response.version == Some(1) {
        Version::H11
    } else {
        Version::H10
    };
    head.status = response.code.unwrap_or_default();
    if !(100..600).contains(&head.status) {
        return Err(HeadError::Bad("the status is not one of HTTP"));
    }
    head.fields = Fields::with_room(length, response.headers.len() + SPARE_FIELDS);
    let reason = response.reason.unwrap_or_default().as_bytes();
    let reason = head.fields.keep(reason);
    head.set_reason(reason);
    for header in response.headers.iter() {
        head.fields.push(header.name.as_bytes(), header.value);
    }
    let framing = response_framing(head, request_method)?;
    Ok(Some((length, framing)))
}

/// RFC 9112 section 6.3.
fn response_framing(head: &ResponseHead, request_method: &[u8]) -> Result<Framing, HeadError> {
    let chunked = is_chunked(&head.fields)?;
    let length = content_length(&head.fields)?;
    if chunked && length.is_some() {
        return Err(HeadError::Bad(
            "both Content-Length and Transfer-Encoding are given",
        ));
    }
    if head.status == 101 || (request_method == b"CONNECT" && (200..300).contains(&head.status)) {
        return Ok(Framing::UntilClose);
    }
    if !head.can_have_body(request_method) {
        return Ok(Framing::None);
    }
    Ok(match (chunked, length) {
        (true, _) => Framing::Chunked,
        (false, Some(0)) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    })
}

/// Whether the connection may carry another message after this one (RFC 9112
/// section 9.3): `close` decides, whatever else is said.
pub fn keeps_alive(fields: &Fields, version: Version) -> bool {
    let has = |token: &[u8]| {
        fields
            .known(Known::Connection)
            .any(|list| crate::http::h2_contains_token(list, token))
    };
    match version {
        Version::H10 => has(b"keep-alive") && !has(b"close"),
        _ => !has(b"close"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &str) -> Result<Option<(usize, Framing)>, HeadError> {
        parse_request(text.as_bytes(), &mut RequestHead::default())
    }

    #[test]
    fn a_request_is_read_whole() {
        let mut head = RequestHead::default();
        let text = b"POST /a/../b?x=1 HTTP/1.1\r\nHost: web.shop:80\r\nX-One: 1\r\nContent-Length: 3\r\n\r\nabc";
        let (length, framing) = parse_request(text, &mut head).unwrap().unwrap();
        assert_eq!((length, framing), (text.len() - 3, Framing::Length(3)));
        assert_eq!(head.path_bytes(), b"/b");
        assert_eq!(head.query_bytes(), Some(&b"x=1"[..]));
        assert_eq!(head.authority_bytes(), b"web.shop:80");
    }

    #[test]
    fn what_two_readers_could_frame_differently_is_refused() {
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length: 0x3",
            "Content-Length: ",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding: chunked\r\n folded",
            "Host: other",
            "Bad Name: x",
            "X: a\0b",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            assert!(request(&text).is_err(), "{fields:?}");
        }
        assert!(request("GET / HTTP/1.1\r\n\r\n").is_err(), "no host");
        assert!(request("GET / HTTP/1.1\r\nHost: a b\r\n\r\n").is_err());
        assert!(request("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n").is_err());
        assert!(request("GET / HTTP/2.0\r\nHost: a\r\n\r\n").is_err());
        assert!(request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn the_absolute_form_names_the_host() {
        let mut head = RequestHead::default();
        parse_request(
            b"GET http://a.example:81?q HTTP/1.1\r\nHost: b\r\n\r\n",
            &mut head,
        )
        .unwrap();
        assert_eq!(head.authority_bytes(), b"a.example:81");
        assert_eq!(
            (head.path_bytes(), head.query_bytes()),
            (&b"/"[..], Some(&b"q"[..]))
        );
    }

    #[test]
    fn a_head_without_end_is_bounded() {
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(MAX_HEAD));
        assert_eq!(request(&endless), Err(HeadError::TooLarge));
        let many = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: 1\r\n".repeat(200)
        );
        assert_eq!(request(&many), Err(HeadError::TooLarge));
    }

    #[test]
    fn protocols_are_told_apart_by_their_first_bytes() {
        assert_eq!(looks_like_request(b"GET / HTTP/1.1\r\n"), Some(true));
        assert_eq!(looks_like_request(b"PURGE /x HTTP/1.1\r\n"), Some(true));
        assert_eq!(looks_like_request(b"PO"), None);
        assert_eq!(looks_like_request(b"HELO mail\r\n"), Some(false));
        assert_eq!(looks_like_request(b"\x16\x03\x01"), Some(false));
        assert_eq!(looks_like_request(b"*1\r\n$4\r\nPING\r\n"), Some(false));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_head_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse_request(&bytes, &mut RequestHead::default());
            let _ = parse_response(&bytes, &mut ResponseHead::default(), b"GET");
            let _ = looks_like_request(&bytes);
        }
    }
}
