//! Header fields as they came: order and case kept, in one buffer.

/// A piece of a message's buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// A part of it, by offsets from its start.
    pub fn part(self, part: std::ops::Range<usize>) -> Self {
        let at = |offset: usize| self.end.min(self.start + offset as u32);
        Self {
            start: at(part.start),
            end: at(part.end),
        }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Fields with a meaning to a proxy (RFC 9110 section 7.6.1, RFC 9112).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// No meaning here: passed on.
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Te,
    /// `Keep-Alive`, `Proxy-Connection`, `HTTP2-Settings`: end at each hop.
    HopByHop,
    Expect,
    TraceParent,
    RequestId,
    GrpcStatus,
}

impl Known {
    fn of(name: &[u8]) -> Self {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is(b"te") => Self::Te,
            4 if is(b"host") => Self::Host,
            6 if is(b"expect") => Self::Expect,
            7 if is(b"upgrade") => Self::Upgrade,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::HopByHop,
            11 if is(b"traceparent") => Self::TraceParent,
            11 if is(b"grpc-status") => Self::GrpcStatus,
            12 if is(b"x-request-id") => Self::RequestId,
            14 if is(b"content-length") => Self::ContentLength,
            14 if is(b"http2-settings") => Self::HopByHop,
            16 if is(b"proxy-connection") => Self::HopByHop,
            17 if is(b"transfer-encoding") => Self::TransferEncoding,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    name: Span,
    value: Span,
    known: Known,
    removed: bool,
}

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Field<'a> {
    /// As written.
    pub name: &'a [u8],
    /// As written.
    pub value: &'a [u8],
    /// What it means to a proxy.
    pub known: Known,
}

/// The fields of a message, and other texts of it in the same buffer.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Fields {
    /// Without fields, with room for a message of so many bytes.
    pub fn with_room(bytes: usize, fields: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            entries: Vec::with_capacity(fields),
        }
    }

    /// Keeps a text beside the fields.
    pub fn keep(&mut self, text: &[u8]) -> Span {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(text);
        Span {
            start,
            end: self.bytes.len() as u32,
        }
    }

    /// A text that was kept.
    pub fn text(&self, span: Span) -> &[u8] {
        self.bytes.get(span.range()).unwrap_or_default()
    }

    /// Adds a field at the end.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let entry = Entry {
            name: self.keep(name),
            value: self.keep(value),
            known: Known::of(name),
            removed: false,
        };
        self.entries.push(entry);
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        let live = self.entries.iter().filter(|e| !e.removed);
        live.map(|e| Field {
            name: self.text(e.name),
            value: self.text(e.value),
            known: e.known,
        })
    }

    /// The values of a field with a meaning.
    pub fn known(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        self.iter()
            .filter(move |f| f.known == known)
            .map(|f| f.value)
    }

    /// The values of a field by name, in any case.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |f| f.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|f| f.value)
    }

    /// Whether there is such a field.
    pub fn has(&self, known: Known) -> bool {
        self.known(known).next().is_some()
    }

    /// Removes every field of a name.
    pub fn remove(&mut self, name: &str) {
        for index in 0..self.entries.len() {
            let Some(entry) = self.entries.get(index) else {
                break;
            };
            if self.text(entry.name).eq_ignore_ascii_case(name.as_bytes())
                && let Some(entry) = self.entries.get_mut(index)
            {
                entry.removed = true;
            }
        }
    }

    /// Replaces every field of a name by one.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.push(name.as_bytes(), value);
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
