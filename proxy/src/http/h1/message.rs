//! A connection that carries HTTP/1 messages, one at a time in each direction.
//! The same for the side that serves and the side that calls.

use std::io;
use std::task::{Context, Poll, ready};

use super::body::{Found, Framing, Reader, Writer};
use crate::buffers::{put_back, put_back_head, take_head, take_scratch};
use crate::http::fields::Fields;
use crate::http::h2::BodyEvent;
use crate::transport::Io;

/// Bytes waiting to be sent above which the other side is read no further.
const OUT_LIMIT: usize = 64 * 1024;
/// Memory kept for the next message.
const KEEP_BUFFER: usize = 8 * 1024;

/// Looks for a head in all bytes there are: its length and what it says, or
/// `None` if more must come.
pub type Parse<'a, T, E> = dyn FnMut(&[u8]) -> Result<Option<(usize, T)>, E> + 'a;

/// A connection and what is read or to be written on it.
pub struct Message {
    /// The connection.
    pub io: Io,
    /// Read and not used up.
    input: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    reader: Reader,
    writer: Writer,
    shut_down: bool,
    peer_ended: bool,
}

fn malformed(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Message {
    /// A connection between messages.
    pub fn new(io: Io) -> Self {
        Self {
            io,
            input: Vec::new(),
            out: Vec::new(),
            sent: 0,
            reader: Reader::new(Framing::None),
            writer: Writer::new(Framing::None),
            shut_down: false,
            peer_ended: false,
        }
    }

    /// Waits for a head. `parse` gets all bytes there are and says how long the
    /// head is, or that more must come. `None`: the connection ended before a
    /// head began.
    pub fn poll_head<T, E: std::error::Error + Send + Sync + 'static>(
        &mut self,
        cx: &mut Context<'_>,
        parse: &mut Parse<'_, T, E>,
    ) -> Poll<io::Result<Option<T>>> {
        if !self.input.is_empty()
            && let Some((length, head)) = parse(&self.input).map_err(malformed)?
        {
            self.use_up(length);
            return Poll::Ready(Ok(Some(head)));
        }
        loop {
            let mut scratch = take_scratch();
            let outcome = self.io.poll_read(cx, &mut scratch).map(|read| {
                let bytes = scratch.get(..read?).unwrap_or_default();
                self.head_in(bytes, parse)
            });
            put_back(scratch);
            match ready!(outcome)? {
                HeadIn::More => {}
                HeadIn::Ended => return Poll::Ready(Ok(None)),
                HeadIn::Head(head) => return Poll::Ready(Ok(Some(head))),
            }
        }
    }

    fn head_in<T, E: std::error::Error + Send + Sync + 'static>(
        &mut self,
        bytes: &[u8],
        parse: &mut Parse<'_, T, E>,
    ) -> io::Result<HeadIn<T>> {
        if bytes.is_empty() {
            self.peer_ended = true;
            return match self.input.is_empty() {
                true => Ok(HeadIn::Ended),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        if self.input.is_empty() {
            // Usually a whole head comes at once, and is never copied.
            let (length, head) = match parse(bytes).map_err(malformed)? {
                Some((length, head)) => (length, Some(head)),
                None => (0, None),
            };
            self.input
                .extend_from_slice(bytes.get(length..).unwrap_or_default());
            return Ok(head.map_or(HeadIn::More, HeadIn::Head));
        }
        self.input.extend_from_slice(bytes);
        match parse(&self.input).map_err(malformed)? {
            Some((length, head)) => {
                self.use_up(length);
                Ok(HeadIn::Head(head))
            }
            None => Ok(HeadIn::More),
        }
    }

    fn use_up(&mut self, length: usize) {
        if length >= self.input.len() {
            self.input.clear();
            if self.input.capacity() > KEEP_BUFFER {
                self.input = Vec::new();
            }
        } else {
            self.input.drain(..length);
        }
    }

    /// Whether the peer ended its side where a head was expected.
    pub fn peer_ended(&self) -> bool {
        self.peer_ended
    }

    /// Whether the start of a head is waiting for its end.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Frees the input buffer if it is empty: an idle connection holds none.
    pub fn release(&mut self) {
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }

    /// Says how the body to be read is framed.
    pub fn start_reading(&mut self, framing: Framing) {
        self.reader = Reader::new(framing);
    }

    /// Whether the body was read to its end.
    pub fn read_to_end(&self) -> bool {
        self.reader.ended()
    }

    /// Gives at most `max` bytes of the body to `sink`.
    pub fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<BodyEvent>> {
        loop {
            match self.reader.next(&self.input, max).map_err(malformed)? {
                Found::Data(range) => {
                    let end = range.end;
                    sink(self.input.get(range).unwrap_or_default());
                    self.use_up(end);
                    return Poll::Ready(Ok(BodyEvent::Data));
                }
                Found::End(used, trailers) => {
                    self.use_up(used);
                    return Poll::Ready(Ok(BodyEvent::End(trailers)));
                }
                Found::More(used) => self.use_up(used),
            }
            let mut scratch = take_scratch();
            let outcome = self.io.poll_read(cx, &mut scratch).map(|read| {
                let bytes = scratch.get(..read?).unwrap_or_default();
                self.body_in(bytes, max, sink)
            });
            put_back(scratch);
            if let Some(event) = ready!(outcome)? {
                return Poll::Ready(Ok(event));
            }
        }
    }

    /// Passes body bytes on without copying them into `input` first.
    fn body_in(
        &mut self,
        bytes: &[u8],
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Option<BodyEvent>> {
        if bytes.is_empty() {
            return match self.reader.connection_ended() {
                true => Ok(Some(BodyEvent::End(None))),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        if !self.input.is_empty() {
            self.input.extend_from_slice(bytes);
            return Ok(None);
        }
        let (used, event) = match self.reader.next(bytes, max).map_err(malformed)? {
            Found::Data(range) => {
                let end = range.end;
                sink(bytes.get(range).unwrap_or_default());
                (end, Some(BodyEvent::Data))
            }
            Found::End(used, trailers) => (used, Some(BodyEvent::End(trailers))),
            Found::More(used) => (used, None),
        };
        self.input
            .extend_from_slice(bytes.get(used..).unwrap_or_default());
        Ok(event)
    }

    /// Queues a head, written by `write`, and says how the body to come is framed.
    pub fn start_writing(&mut self, framing: Framing, write: impl FnOnce(&mut Vec<u8>)) {
        self.writer = Writer::new(framing);
        self.take_room();
        write(&mut self.out);
    }

    fn take_room(&mut self) {
        if self.out.capacity() == 0 {
            self.out = take_head();
        }
    }

    /// Queues an interim head.
    pub fn write_interim(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.take_room();
        write(&mut self.out);
    }

    /// Waits until body bytes may be queued, and says how many.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.out.len() - self.sent >= OUT_LIMIT {
            ready!(self.poll_flush(cx))?;
        }
        Poll::Ready(Ok(OUT_LIMIT))
    }

    /// Queues body bytes.
    pub fn send_data(&mut self, data: &[u8]) -> io::Result<()> {
        match self.writer.put(&mut self.out, data) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a longer body than announced",
            )),
        }
    }

    /// Queues the end of the body.
    pub fn send_end(&mut self, trailers: Option<&Fields>) -> io::Result<()> {
        match self.writer.end(&mut self.out, trailers) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a shorter body than announced",
            )),
        }
    }

    /// Whether the connection's end is the end of the body being written.
    pub fn ends_with_connection(&self) -> bool {
        self.writer.ends_with_connection()
    }

    /// Sends all that is queued.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            let left = self.out.get(self.sent..).unwrap_or_default();
            self.sent += ready!(self.io.poll_write(cx, left))?;
        }
        if self.out.capacity() > 0 {
            put_back_head(std::mem::take(&mut self.out));
        }
        self.sent = 0;
        self.io.poll_flush(cx)
    }

    /// Ends the sending side of the connection, once.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut_down {
            ready!(self.io.poll_shutdown(cx))?;
            self.shut_down = true;
        }
        Poll::Ready(Ok(()))
    }
}

enum HeadIn<T> {
    Head(T),
    More,
    Ended,
}
