//! Bodies of HTTP/1 messages: where they end, and how they are written.

use crate::http::fields::Fields;

/// How the end of a body is told (RFC 9112 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection ends; also the bytes of a tunnel.
    UntilClose,
}

/// Longest line within a chunked body, in bytes.
const MAX_LINE: usize = 4096;
/// Largest trailer section, in bytes.
const MAX_TRAILERS: usize = 16 * 1024;

/// A body that cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed")]
pub struct ChunkError;

/// What was found in some bytes.
#[derive(Debug)]
pub enum Found {
    /// Bytes `start..end` are body; what was before `end` is used up.
    Data(std::ops::Range<usize>),
    /// The body ended, with so many bytes used up.
    End(usize, Option<Fields>),
    /// More bytes are needed; so many were used up.
    More(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

/// Finds a body in a stream of bytes.
#[derive(Debug)]
pub struct Reader {
    framing: Framing,
    left: u64,
    chunk: Chunk,
    ended: bool,
}

impl Reader {
    /// At the start of a body.
    pub fn new(framing: Framing) -> Self {
        Self {
            framing,
            left: if let Framing::Length(length) = framing {
                length
            } else {
                0
            },
            chunk: Chunk::Size,
            ended: framing == Framing::None,
        }
    }

    /// Whether its end was seen.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Takes the end of the connection; `false`: the body is not complete.
    pub fn connection_ended(&mut self) -> bool {
        self.ended |= self.framing == Framing::UntilClose;
        self.ended
    }

    /// Looks at bytes that have not been used up, for at most `max` of body.
    pub fn next(&mut self, bytes: &[u8], max: usize) -> Result<Found, ChunkError> {
        if self.ended {
            return Ok(Found::End(0, None));
        }
        match self.framing {
            Framing::None => Ok(Found::End(0, None)),
            Framing::UntilClose if bytes.is_empty() => Ok(Found::More(0)),
            Framing::UntilClose => Ok(Found::Data(0..bytes.len().min(max))),
            Framing::Length(_) => {
                let n = (bytes.len().min(max) as u64).min(self.left) as usize;
                self.left -= n as u64;
                if self.left == 0 && n == 0 {
                    self.ended = true;
                    return Ok(Found::End(0, None));
                }
                Ok(if n == 0 {
                    Found::More(0)
                } else {
                    Found::Data(0..n)
                })
            }
            Framing::Chunked => self.next_chunk(bytes, max),
        }
    }

    fn next_chunk(&mut self, bytes: &[u8], max: usize) -> Result<Found, ChunkError> {
        let mut used = 0;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            match self.chunk {
                Chunk::Size => {
                    let Some(line) = line(rest)? else {
                        return Ok(Found::More(used));
                    };
                    used += line.len() + 2;
                    self.chunk = match chunk_size(line)? {
                        0 => Chunk::Trailers,
                        size => Chunk::Data(size),
                    };
                }
                Chunk::Data(left) => {
                    let n = (rest.len().min(max) as u64).min(left) as usize;
                    if n == 0 {
                        return Ok(Found::More(used));
                    }
                    self.chunk = match left - n as u64 {
                        0 => Chunk::DataEnd,
                        left => Chunk::Data(left),
                    };
                    return Ok(Found::Data(used..used + n));
                }
                Chunk::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        used += 2;
                        self.chunk = Chunk::Size;
                    }
                    [] | [b'\r'] => return Ok(Found::More(used)),
                    _ => return Err(ChunkError),
                },
                Chunk::Trailers => {
                    let Some((length, fields)) = trailers(rest)? else {
                        return Ok(Found::More(used));
                    };
                    self.ended = true;
                    return Ok(Found::End(used + length, fields));
                }
            }
        }
    }
}

/// A line without its CRLF. A bare LF or CR is not accepted here.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, ChunkError> {
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else {
        return if bytes.len() > MAX_LINE {
            Err(ChunkError)
        } else {
            Ok(None)
        };
    };
    let line = bytes
        .get(..end)
        .and_then(|l| l.strip_suffix(b"\r"))
        .ok_or(ChunkError)?;
    if line.len() > MAX_LINE || line.contains(&b'\r') {
        return Err(ChunkError);
    }
    Ok(Some(line))
}

/// Extensions are skipped (RFC 9112 section 7.1.1).
fn chunk_size(line: &[u8]) -> Result<u64, ChunkError> {
    let digits = line.split(|&b| b == b';').next().unwrap_or_default();
    let digits = digits.trim_ascii_end();
    let fine = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| fine);
    text.and_then(|t| u64::from_str_radix(t, 16).ok())
        .ok_or(ChunkError)
}

fn trailers(bytes: &[u8]) -> Result<Option<(usize, Option<Fields>)>, ChunkError> {
    if bytes.starts_with(b"\r\n") {
        return Ok(Some((2, None)));
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    match httparse::parse_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete((length, headers))) => {
            let mut fields = Fields::default();
            for header in headers {
                fields.push(header.name.as_bytes(), header.value);
            }
            Ok(Some((length, Some(fields))))
        }
        Ok(httparse::Status::Partial) if bytes.len() <= MAX_TRAILERS => Ok(None),
        _ => Err(ChunkError),
    }
}

/// Writes a body.
#[derive(Debug, Clone, Copy)]
pub struct Writer {
    framing: Framing,
    left: u64,
}

impl Writer {
    /// At the start of a body.
    pub fn new(framing: Framing) -> Self {
        let left = if let Framing::Length(length) = framing {
            length
        } else {
            0
        };
        Self { framing, left }
    }

    /// Appends body bytes. `false`: more than was announced.
    pub fn put(&mut self, out: &mut Vec<u8>, data: &[u8]) -> bool {
        match self.framing {
            Framing::None => return data.is_empty(),
            Framing::Length(_) => match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => return false,
            },
            Framing::Chunked if !data.is_empty() => {
                out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
                return true;
            }
            Framing::Chunked | Framing::UntilClose => {}
        }
        out.extend_from_slice(data);
        true
    }

    /// Ends the body. `false`: less than was announced.
    pub fn end(&mut self, out: &mut Vec<u8>, trailers: Option<&Fields>) -> bool {
        if self.framing == Framing::Chunked {
            out.extend_from_slice(b"0\r\n");
            for field in trailers.iter().flat_map(|t| t.iter()) {
                super::write::put_field(out, field.name, field.value);
            }
            out.extend_from_slice(b"\r\n");
        }
        self.left == 0
    }

    /// Whether the connection's end is the body's.
    pub fn ends_with_connection(&self) -> bool {
        self.framing == Framing::UntilClose
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a body that comes in pieces of `step` bytes.
    fn read(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, usize), ChunkError> {
        let mut reader = Reader::new(framing);
        let (mut body, mut buffer, mut taken, mut fed) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            match reader.next(&buffer, usize::MAX)? {
                Found::Data(range) => {
                    body.extend_from_slice(&buffer[range.clone()]);
                    buffer.drain(..range.end);
                    taken += range.end;
                }
                Found::End(used, _) => return Ok((body, taken + used)),
                Found::More(used) => {
                    buffer.drain(..used);
                    taken += used;
                    if fed == wire.len() {
                        return Err(ChunkError);
                    }
                    let next = (fed + step).min(wire.len());
                    buffer.extend_from_slice(&wire[fed..next]);
                    fed = next;
                }
            }
        }
    }

    #[test]
    fn chunks_are_found_however_they_arrive() {
        let wire = b"5;x=y\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nX-T: 1\r\n\r\nNEXT";
        for step in 1..wire.len() {
            let (body, used) = read(Framing::Chunked, wire, step).unwrap();
            assert_eq!(body, b"hello world");
            assert_eq!(&wire[used..], b"NEXT");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wire in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"\r\nhello\r\n",
            b"ffffffffffffffff\r\n",
            b"5\r\rhello\r\n",
        ] {
            assert!(read(Framing::Chunked, wire, 1).is_err(), "{wire:?}");
        }
    }

    #[test]
    fn a_writer_keeps_to_what_was_announced() {
        let mut out = Vec::new();
        let mut writer = Writer::new(Framing::Length(3));
        assert!(writer.put(&mut out, b"ab"));
        assert!(!writer.put(&mut out, b"cd"));
        assert!(!writer.end(&mut out, None));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10), step in 1usize..20) {
            let mut wire = Vec::new();
            let mut writer = Writer::new(Framing::Chunked);
            for chunk in &chunks {
                prop_assert!(writer.put(&mut wire, chunk));
            }
            prop_assert!(writer.end(&mut wire, None));
            let (body, used) = read(Framing::Chunked, &wire, step).unwrap();
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(used, wire.len());
        }

        #[test]
        fn any_bytes_end(wire in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(Framing::Chunked, &wire, 7);
        }
    }
}
