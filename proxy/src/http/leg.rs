//! One side of an exchange, whatever HTTP version it speaks: a body to read,
//! and a body to write.

use std::io;
use std::task::{Context, Poll, ready};

use super::fields::Fields;
use super::h1::{Framing, Message};
use super::h2::{BodyEvent, ErrorCode, Stream, StreamError};
use super::head::{ResponseHead, Version};

/// Why a side cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LegError {
    /// It never looked at the request: it is safe to send it again.
    #[error("the request was refused unseen")]
    Refused,
    /// The connection or stream ended.
    #[error("the connection was lost")]
    Lost,
    /// What it sent is not HTTP.
    #[error("the message is malformed")]
    Malformed,
}

impl From<io::Error> for LegError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Malformed,
            _ => Self::Lost,
        }
    }
}

impl From<StreamError> for LegError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Refused => Self::Refused,
            StreamError::Malformed => Self::Malformed,
            StreamError::Reset(_) | StreamError::Lost => Self::Lost,
        }
    }
}

/// A connection for one exchange, or a stream.
pub enum Leg {
    /// HTTP/1.
    H1(Box<Message>),
    /// HTTP/2, or the mesh's framing.
    H2(Stream),
}

impl Leg {
    /// Gives at most `max` body bytes to `sink`.
    pub fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<BodyEvent, LegError>> {
        match self {
            Self::H1(message) => message.poll_data(cx, max, sink).map_err(LegError::from),
            Self::H2(stream) => stream.poll_data(cx, max, sink).map_err(LegError::from),
        }
    }

    /// Waits until body bytes may be sent, and says how many.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, LegError>> {
        match self {
            Self::H1(message) => message.poll_capacity(cx).map_err(LegError::from),
            Self::H2(stream) => stream.poll_capacity(cx).map_err(LegError::from),
        }
    }

    /// Sends body bytes, no more than there is capacity for.
    pub fn send_data(&mut self, data: &[u8]) -> Result<(), LegError> {
        match self {
            Self::H1(message) => Ok(message.send_data(data)?),
            Self::H2(stream) => {
                stream.send_data(data);
                Ok(())
            }
        }
    }

    /// Ends the body.
    pub fn send_end(&mut self, trailers: Option<&Fields>) -> Result<(), LegError> {
        match self {
            Self::H1(message) => Ok(message.send_end(trailers)?),
            Self::H2(stream) => {
                stream.send_end(trailers);
                Ok(())
            }
        }
    }

    /// Brings what was sent on its way. A stream's connection does that by itself.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        match self {
            Self::H1(message) => message.poll_flush(cx).map_err(LegError::from),
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Brings the end of the body on its way; where the connection's end is
    /// the body's, ends that side of the connection.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        ready!(self.poll_flush(cx))?;
        match self {
            Self::H1(message) if message.ends_with_connection() => {
                message.poll_shutdown(cx).map_err(LegError::from)
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Turns it into a tunnel: bytes in both directions until each side ends.
    pub fn start_tunnel(&mut self) {
        if let Self::H1(message) = self {
            message.start_reading(Framing::UntilClose);
            message.start_writing(Framing::UntilClose, |_| {});
        }
    }

    /// Whether nothing of the body to be read is left, and its length is known
    /// to be zero.
    pub fn body_is_empty(&self) -> bool {
        match self {
            Self::H1(message) => message.read_to_end(),
            Self::H2(stream) => stream.complete_body() == Some(0),
        }
    }

    /// Sends a response's head to the caller.
    pub fn send_response(
        &mut self,
        head: &ResponseHead,
        framing: Framing,
        client: Version,
        close: bool,
    ) {
        match self {
            Self::H1(message) => {
                let write = |out: &mut Vec<u8>| {
                    super::h1::put_response(out, head, framing, client, close);
                };
                if head.is_interim() {
                    message.write_interim(write);
                } else {
                    message.start_writing(framing, write);
                }
            }
            Self::H2(stream) => {
                stream.send_response(head, framing == Framing::None && !head.is_interim());
            }
        }
    }

    /// Waits for the peer to go away while nothing is read from it.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            // A half-closed client still waits for its answer; a reset shows
            // when something is sent.
            Self::H1(_) => Poll::Pending,
            Self::H2(stream) => stream.poll_error(cx).map(|_| ()),
        }
    }

    /// Ends it in a way that the peer cannot take for the end of the message.
    pub fn abort(&mut self) {
        match self {
            Self::H1(message) => message.io.reset_on_drop(),
            Self::H2(stream) => stream.reset(ErrorCode::InternalError),
        }
    }
}
