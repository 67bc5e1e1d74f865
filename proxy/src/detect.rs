//! What a connection speaks, from its first bytes. Availability before
//! certainty: what is not surely HTTP is carried as it is.

use crate::http::h1::looks_like_request;
use crate::http::h2::PREFACE;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS: the mesh's own on the inbound side, the application's elsewhere.
    Tls,
    /// Anything else.
    Opaque,
}

/// Decides; `None`: more bytes are needed.
pub fn spoken(bytes: &[u8]) -> Option<Spoken> {
    if bytes.is_empty() {
        return None;
    }
    // RFC 8446 section 5.1: a handshake record.
    if bytes.first() == Some(&0x16) {
        return match bytes.get(1) {
            None => None,
            Some(3) => Some(Spoken::Tls),
            Some(_) => Some(Spoken::Opaque),
        };
    }
    let start = PREFACE
        .get(..bytes.len().min(PREFACE.len()))
        .unwrap_or_default();
    // "PRI" alone tells it from every HTTP/1 method in use.
    if bytes.starts_with(start) {
        return (bytes.len() >= 3).then_some(Spoken::Http2);
    }
    match looks_like_request(bytes) {
        Some(true) => Some(Spoken::Http1),
        Some(false) => Some(Spoken::Opaque),
        None => None,
    }
}

/// What a ClientHello asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Partial,
    /// ALPN names one of the mesh's protocols.
    Mesh,
    /// The application's own TLS, or no ClientHello at all.
    Other,
}

/// Looks for the mesh's ALPN in a ClientHello (RFC 8446 section 4.1.2, RFC 7301).
pub fn client_hello(bytes: &[u8]) -> Hello {
    match parse_hello(bytes) {
        Ok(true) => Hello::Mesh,
        Ok(false) => Hello::Other,
        Err(short) if short && bytes.len() < 32 * 1024 => Hello::Partial,
        Err(_) => Hello::Other,
    }
}

/// A reader over bytes of which the end may be missing: `Err(true)`.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], bool> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(true)?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self, n: usize) -> Result<usize, bool> {
        Ok(self
            .take(n)?
            .iter()
            .fold(0, |sum, &b| sum << 8 | b as usize))
    }

    fn prefixed(&mut self, n: usize) -> Result<Bytes<'a>, bool> {
        let length = self.number(n)?;
        Ok(Bytes(self.take(length)?))
    }
}

fn parse_hello(bytes: &[u8]) -> Result<bool, bool> {
    // The hello may be spread over several records.
    let mut records = Bytes(bytes);
    let mut handshake = Vec::new();
    while !records.0.is_empty() {
        let header = records.take(3)?;
        if header.first() != Some(&0x16) {
            return Err(false);
        }
        let length = records.number(2)?;
        // The start of a record is of use already.
        let here = length.min(records.0.len());
        handshake.extend_from_slice(records.take(here)?);
    }
    let mut message = Bytes(&handshake);
    if message.number(1)? != 1 {
        return Err(false);
    }
    let mut hello = message.prefixed(3)?;
    // Everything is here: what is missing from now on is malformed.
    find_alpn(&mut hello).map_err(|_| false)
}

fn find_alpn(hello: &mut Bytes<'_>) -> Result<bool, bool> {
    hello.take(2 + 32)?;
    hello.prefixed(1)?;
    hello.prefixed(2)?;
    hello.prefixed(1)?;
    let mut extensions = hello.prefixed(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut body = extensions.prefixed(2)?;
        if kind != 16 {
            continue;
        }
        let mut protocols = body.prefixed(2)?;
        while !protocols.0.is_empty() {
            let protocol = protocols.prefixed(1)?.0;
            if protocol == weft_identity::ALPN_HTTP || protocol == weft_identity::ALPN_TCP {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn hello(alpn: &[&[u8]]) -> Vec<u8> {
        let bundle = weft_identity::TrustBundle::default();
        let config =
            weft_identity::client_config(None, &bundle, weft_identity::PeerRule::AnyTrusted, alpn);
        let name = rustls::pki_types::ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
        let mut client = rustls::ClientConnection::new(Arc::clone(&config.unwrap()), name).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    #[test]
    fn the_mesh_is_told_from_the_applications_tls() {
        assert_eq!(client_hello(&hello(&[b"weft/http"])), Hello::Mesh);
        assert_eq!(client_hello(&hello(&[b"h2", b"weft/tcp"])), Hello::Mesh);
        assert_eq!(client_hello(&hello(&[b"h2", b"http/1.1"])), Hello::Other);
        assert_eq!(client_hello(&hello(&[])), Hello::Other);
    }

    #[test]
    fn a_hello_in_pieces_is_waited_for() {
        let whole = hello(&[b"weft/http"]);
        for cut in 1..whole.len() {
            assert_eq!(client_hello(&whole[..cut]), Hello::Partial, "{cut}");
        }
    }

    #[test]
    fn first_bytes_tell_the_protocol() {
        assert_eq!(spoken(b"GET / HTTP/1.1\r\n"), Some(Spoken::Http1));
        assert_eq!(spoken(b"PRI * HTTP/2.0\r\n"), Some(Spoken::Http2));
        assert_eq!(spoken(b"P"), None);
        assert_eq!(spoken(b"\x16\x03\x01\x02"), Some(Spoken::Tls));
        assert_eq!(spoken(b"SSH-2.0-x"), Some(Spoken::Opaque));
        assert_eq!(spoken(b"\0\0\0\x08\x04\xd2\x16\x2f"), Some(Spoken::Opaque));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decided(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = spoken(&bytes);
            let _ = client_hello(&bytes);
            let mut tls = vec![0x16, 3, 1];
            tls.extend(bytes);
            let _ = client_hello(&tls);
        }
    }
}
