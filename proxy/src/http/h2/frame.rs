//! HTTP/2 frames (RFC 9113 section 4): reading their heads, writing them.

/// Length of a frame's head.
pub const HEAD: usize = 9;
/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest payload sent, and accepted: the initial SETTINGS_MAX_FRAME_SIZE.
pub const MAX_PAYLOAD: usize = 16_384;

/// Frame types (section 6).
pub mod kind {
    #![allow(missing_docs)]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    #![allow(missing_docs)]
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

/// Identifiers of settings (section 6.5.2).
pub mod setting {
    #![allow(missing_docs)]
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Error codes (section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum ErrorCode {
    NoError = 0,
    ProtocolError = 1,
    InternalError = 2,
    FlowControlError = 3,
    SettingsTimeout = 4,
    StreamClosed = 5,
    FrameSizeError = 6,
    RefusedStream = 7,
    Cancel = 8,
    CompressionError = 9,
    ConnectError = 10,
    EnhanceYourCalm = 11,
    InadequateSecurity = 12,
    Http11Required = 13,
}

impl ErrorCode {
    /// Unknown codes count as INTERNAL_ERROR (section 7).
    pub fn from_u32(code: u32) -> Self {
        match code {
            0 => Self::NoError,
            1 => Self::ProtocolError,
            3 => Self::FlowControlError,
            4 => Self::SettingsTimeout,
            5 => Self::StreamClosed,
            6 => Self::FrameSizeError,
            7 => Self::RefusedStream,
            8 => Self::Cancel,
            9 => Self::CompressionError,
            10 => Self::ConnectError,
            11 => Self::EnhanceYourCalm,
            12 => Self::InadequateSecurity,
            13 => Self::Http11Required,
            _ => Self::InternalError,
        }
    }
}

/// A frame's head.
#[derive(Debug, Clone, Copy)]
pub struct FrameHead {
    /// Length of its payload.
    pub length: usize,
    /// One of `kind`.
    pub kind: u8,
    /// Of `flag`.
    pub flags: u8,
    /// Its stream; 0: the connection.
    pub stream: u32,
}

impl FrameHead {
    /// Reads a head; `None` if there are fewer than nine bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; HEAD] = bytes.first_chunk()?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
        Some(Self {
            length: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        })
    }

    /// Whether a flag is set.
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a frame's head.
pub fn put_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, l0, l1, l2] = (length as u32).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    out.extend_from_slice(&[l0, l1, l2, kind, flags, s0, s1, s2, s3]);
}

/// Appends DATA frames for a payload of any length.
pub fn put_data(out: &mut Vec<u8>, stream: u32, payload: &[u8], end: bool) {
    if payload.is_empty() {
        let flags = if end { flag::END_STREAM } else { 0 };
        put_head(out, 0, kind::DATA, flags, stream);
        return;
    }
    let mut chunks = payload.chunks(MAX_PAYLOAD).peekable();
    while let Some(chunk) = chunks.next() {
        let last = end && chunks.peek().is_none();
        let flags = if last { flag::END_STREAM } else { 0 };
        put_head(out, chunk.len(), kind::DATA, flags, stream);
        out.extend_from_slice(chunk);
    }
}

/// Appends a field block, written by `write`, as HEADERS and as many
/// CONTINUATION frames as it takes.
pub fn put_headers(
    out: &mut Vec<u8>,
    stream: u32,
    end_stream: bool,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    put_head(out, 0, kind::HEADERS, 0, stream);
    write(out);
    let mut length = out.len() - start - HEAD;
    let end_stream = if end_stream { flag::END_STREAM } else { 0 };
    if length <= MAX_PAYLOAD {
        patch(out, start, length, end_stream | flag::END_HEADERS);
        return;
    }
    let rest = out.split_off(start + HEAD + MAX_PAYLOAD);
    patch(out, start, MAX_PAYLOAD, end_stream);
    length -= MAX_PAYLOAD;
    for chunk in rest.chunks(MAX_PAYLOAD) {
        length -= chunk.len();
        let flags = if length == 0 { flag::END_HEADERS } else { 0 };
        put_head(out, chunk.len(), kind::CONTINUATION, flags, stream);
        out.extend_from_slice(chunk);
    }
}

fn patch(out: &mut [u8], at: usize, length: usize, flags: u8) {
    let [_, l0, l1, l2] = (length as u32).to_be_bytes();
    if let Some([a, b, c, _, f]) = out.get_mut(at..at + 5) {
        (*a, *b, *c, *f) = (l0, l1, l2, flags);
    }
}

/// Appends SETTINGS.
pub fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(out, settings.len() * 6, kind::SETTINGS, 0, 0);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends the acknowledgement of SETTINGS.
pub fn put_settings_ack(out: &mut Vec<u8>) {
    put_head(out, 0, kind::SETTINGS, flag::ACK, 0);
}

/// Appends RST_STREAM.
pub fn put_reset(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    put_head(out, 4, kind::RST_STREAM, 0, stream);
    out.extend_from_slice(&(code as u32).to_be_bytes());
}

/// Appends PING or its acknowledgement.
pub fn put_ping(out: &mut Vec<u8>, ack: bool, payload: [u8; 8]) {
    put_head(out, 8, kind::PING, if ack { flag::ACK } else { 0 }, 0);
    out.extend_from_slice(&payload);
}

/// Appends GOAWAY.
pub fn put_goaway(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode) {
    put_head(out, 8, kind::GOAWAY, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&(code as u32).to_be_bytes());
}

/// Appends WINDOW_UPDATE.
pub fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put_head(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}
