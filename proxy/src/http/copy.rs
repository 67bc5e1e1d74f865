//! A body on its way from one side to the other, at the pace of the slower.

use std::task::{Context, Poll, ready};

use super::fields::Fields;
use super::h2::BodyEvent;
use super::leg::{Leg, LegError};

/// Request bytes kept for sending them again.
const MAX_REPLAY: usize = 64 * 1024;
/// Bytes moved before other tasks get their turn.
const TURN: usize = 256 * 1024;

/// Which side failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyError {
    /// The one that is read.
    Read(LegError),
    /// The one that is written.
    Write(LegError),
}

enum Stage {
    Moving,
    Finishing,
    Done,
}

/// A body's progress.
pub struct Copy {
    stage: Stage,
    /// Body bytes moved.
    pub bytes: u64,
    /// Status of a gRPC call, from the trailers.
    pub grpc_status: Option<u8>,
    replay: Option<Replay>,
}

/// What was sent of a request already, for the next attempt.
#[derive(Default)]
struct Replay {
    bytes: Vec<u8>,
    /// How much of it the current attempt has sent.
    sent: usize,
    ended: bool,
    overflowed: bool,
}

impl Copy {
    /// A body that is sent once.
    pub fn once() -> Self {
        Self {
            stage: Stage::Moving,
            bytes: 0,
            grpc_status: None,
            replay: None,
        }
    }

    /// A body that may have to be sent again.
    pub fn repeatable() -> Self {
        Self {
            replay: Some(Replay::default()),
            ..Self::once()
        }
    }

    /// A body that is complete before it began.
    pub fn done() -> Self {
        Self {
            stage: Stage::Done,
            ..Self::repeatable()
        }
    }

    /// Nothing but what is queued already has to go out.
    pub fn flush_only() -> Self {
        Self {
            stage: Stage::Finishing,
            ..Self::repeatable()
        }
    }

    /// Whether all of it has gone.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Whether it can be sent from the start again.
    pub fn can_restart(&self) -> bool {
        self.replay.as_ref().is_some_and(|r| !r.overflowed)
    }

    /// Starts again, towards another side.
    pub fn restart(&mut self) {
        self.stage = Stage::Moving;
        if let Some(replay) = &mut self.replay {
            replay.sent = 0;
        }
    }

    /// Moves as much as can be moved.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Leg,
        to: &mut Leg,
    ) -> Poll<Result<(), CopyError>> {
        let mut moved = 0;
        loop {
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Finishing => {
                    ready!(to.poll_finish(cx)).map_err(CopyError::Write)?;
                    self.stage = Stage::Done;
                }
                Stage::Moving => match self.poll_move(cx, from, to) {
                    Poll::Ready(Ok(n)) => moved += n,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => {
                        ready!(to.poll_flush(cx)).map_err(CopyError::Write)?;
                        return Poll::Pending;
                    }
                },
            }
            if moved >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Leg,
        to: &mut Leg,
    ) -> Poll<Result<usize, CopyError>> {
        // The end needs no capacity, and an empty body has nothing else.
        if self.replay.as_ref().is_none_or(|r| r.sent == r.bytes.len()) && from.body_is_empty() {
            let event = ready!(from.poll_data(cx, 0, &mut |_| {})).map_err(CopyError::Read)?;
            if let BodyEvent::End(trailers) = event {
                return Poll::Ready(self.end(trailers, to).map(|()| 0));
            }
        }
        let capacity = ready!(to.poll_capacity(cx)).map_err(CopyError::Write)?;
        if let Some(replay) = &mut self.replay {
            let again = replay.bytes.get(replay.sent..).unwrap_or_default();
            if !again.is_empty() {
                let n = again.len().min(capacity);
                to.send_data(again.get(..n).unwrap_or_default())
                    .map_err(CopyError::Write)?;
                replay.sent += n;
                return Poll::Ready(Ok(n));
            }
            if replay.ended {
                return Poll::Ready(self.end(None, to).map(|()| 0));
            }
        }
        let (replay, mut written, mut n) = (&mut self.replay, Ok(()), 0);
        let event = ready!(from.poll_data(cx, capacity, &mut |data| {
            n = data.len();
            if let Some(replay) = replay {
                replay.keep(data);
            }
            written = to.send_data(data);
        }))
        .map_err(CopyError::Read)?;
        written.map_err(CopyError::Write)?;
        self.bytes += n as u64;
        match event {
            BodyEvent::Data => Poll::Ready(Ok(n)),
            BodyEvent::End(trailers) => Poll::Ready(self.end(trailers, to).map(|()| n)),
        }
    }

    fn end(&mut self, trailers: Option<Fields>, to: &mut Leg) -> Result<(), CopyError> {
        if let Some(replay) = &mut self.replay {
            replay.ended = true;
            // Trailers are not kept: such a request is sent once.
            replay.overflowed |= trailers.is_some();
        }
        if let Some(trailers) = &trailers {
            self.grpc_status = grpc_status(trailers);
        }
        to.send_end(trailers.as_ref()).map_err(CopyError::Write)?;
        self.stage = Stage::Finishing;
        Ok(())
    }
}

impl Replay {
    fn keep(&mut self, data: &[u8]) {
        if self.overflowed || self.bytes.len() + data.len() > MAX_REPLAY {
            self.overflowed = true;
            self.bytes = Vec::new();
            self.sent = 0;
        } else {
            self.bytes.extend_from_slice(data);
            self.sent = self.bytes.len();
        }
    }
}

/// `grpc-status` of trailers, or of a head that has them.
pub fn grpc_status(fields: &Fields) -> Option<u8> {
    let value = fields.known(super::fields::Known::GrpcStatus).next()?;
    std::str::from_utf8(value).ok()?.parse().ok()
}
