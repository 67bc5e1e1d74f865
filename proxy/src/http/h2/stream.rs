//! One stream: a request and its response, as its task sees them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::connection::Connection;
use super::frame::ErrorCode;
use crate::http::fields::Fields;
use crate::http::head::ResponseHead;

/// Memory kept in a stream's buffer when it is empty.
const KEEP_BUFFER: usize = 16 * 1024;

/// Why a stream ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other side ended it.
    #[error("the peer reset the stream ({0:?})")]
    Reset(ErrorCode),
    /// The other side said that it never looked at it: it is safe to send the
    /// request again (RFC 9113 section 8.7).
    #[error("the peer refused the stream unseen")]
    Refused,
    /// The connection is gone.
    #[error("the connection was lost")]
    Lost,
    /// What came is not HTTP.
    #[error("the peer sent a malformed message")]
    Malformed,
}

/// What a body's reader gets.
#[derive(Debug)]
pub enum BodyEvent {
    /// Bytes were given to the sink.
    Data,
    /// The body is complete.
    End(Option<Fields>),
}

/// A stream's state, shared by its task and its connection.
#[derive(Default)]
pub(super) struct StreamState {
    pub id: u32,
    /// Heads of responses: interim ones, then the final one.
    pub heads: VecDeque<ResponseHead>,
    pub data: Vec<u8>,
    pub data_start: usize,
    pub trailers: Option<Fields>,
    pub receive_ended: bool,
    /// What the peer may still send.
    pub receive_window: i64,
    /// Taken by the task, not yet given back to the peer.
    pub consumed: u32,
    /// What `content-length` has left.
    pub length_left: Option<u64>,
    pub receive_waker: Option<Waker>,
    pub send_window: i64,
    pub send_ended: bool,
    pub send_waker: Option<Waker>,
    pub error: Option<StreamError>,
    /// The peer has reset it.
    pub peer_reset: bool,
    /// A final response head has come.
    pub answered: bool,
}

impl StreamState {
    pub fn wake_all(&mut self) {
        for waker in [self.receive_waker.take(), self.send_waker.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    pub fn fail(&mut self, error: StreamError) {
        self.error.get_or_insert(error);
        self.wake_all();
    }

    pub fn wake_receiver(&mut self) {
        if let Some(waker) = self.receive_waker.take() {
            waker.wake();
        }
    }

    /// Both sides have said all they had to.
    pub fn is_complete(&self) -> bool {
        self.receive_ended && self.send_ended
    }
}

/// The task's end of a stream. Dropping it before both sides have ended resets
/// the stream.
pub struct Stream {
    pub(super) connection: Rc<Connection>,
    pub(super) state: Rc<RefCell<StreamState>>,
}

impl Stream {
    /// Waits for the next response head, interim ones included.
    pub fn poll_response(&self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        let mut state = self.state.borrow_mut();
        if let Some(head) = state.heads.pop_front() {
            return Poll::Ready(Ok(head));
        }
        if let Some(error) = state.error {
            return Poll::Ready(Err(error));
        }
        if state.receive_ended {
            return Poll::Ready(Err(StreamError::Malformed));
        }
        set_waker(&mut state.receive_waker, cx);
        Poll::Pending
    }

    /// Gives at most `max` bytes of the body to `sink`.
    pub fn poll_data(
        &self,
        cx: &mut Context<'_>,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<BodyEvent, StreamError>> {
        let mut state = self.state.borrow_mut();
        let start = state.data_start;
        let available = state.data.get(start..).unwrap_or_default();
        let taken = available.len().min(max);
        if taken > 0 {
            sink(available.get(..taken).unwrap_or_default());
            state.data_start += taken;
            if state.data_start == state.data.len() {
                state.data.clear();
                state.data_start = 0;
                if state.data.capacity() > KEEP_BUFFER && state.receive_ended {
                    state.data = Vec::new();
                }
            }
            state.consumed += taken as u32;
            if !state.receive_ended {
                self.connection.return_window(&mut state);
            }
            return Poll::Ready(Ok(BodyEvent::Data));
        }
        // What is complete stays so, whatever came after it.
        if state.receive_ended {
            return Poll::Ready(Ok(BodyEvent::End(state.trailers.take())));
        }
        if let Some(error) = state.error {
            return Poll::Ready(Err(error));
        }
        set_waker(&mut state.receive_waker, cx);
        Poll::Pending
    }

    /// Whether the whole body is here already, and how long it is.
    pub fn complete_body(&self) -> Option<usize> {
        let state = self.state.borrow();
        (state.receive_ended && state.trailers.is_none())
            .then(|| state.data.len() - state.data_start)
    }

    /// Waits until something may be sent, and says how much.
    pub fn poll_capacity(&self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        let mut state = self.state.borrow_mut();
        if let Some(error) = state.error {
            return Poll::Ready(Err(error));
        }
        let window = usize::try_from(state.send_window).unwrap_or(0);
        if window == 0 {
            set_waker(&mut state.send_waker, cx);
            return Poll::Pending;
        }
        match self.connection.poll_room(cx) {
            Poll::Ready(room) => Poll::Ready(Ok(window.min(room))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sends body bytes, no more than `poll_capacity` said.
    pub fn send_data(&self, data: &[u8]) {
        let mut state = self.state.borrow_mut();
        state.send_window -= data.len() as i64;
        self.connection.put_data(state.id, data, false);
    }

    /// Ends this side, with trailers if there are any.
    pub fn send_end(&self, trailers: Option<&Fields>) {
        let mut state = self.state.borrow_mut();
        if state.send_ended || state.error.is_some() {
            return;
        }
        state.send_ended = true;
        match trailers {
            Some(fields) => self.connection.put_trailers(state.id, fields),
            None => self.connection.put_data(state.id, &[], true),
        }
    }

    /// Sends a response's head. `end`: no body follows.
    pub fn send_response(&self, head: &ResponseHead, end: bool) {
        let mut state = self.state.borrow_mut();
        if state.error.is_some() {
            return;
        }
        state.send_ended |= end;
        self.connection.put_response(state.id, head, end);
    }

    /// Waits until the other side gives up.
    pub fn poll_error(&self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut state = self.state.borrow_mut();
        match state.error {
            Some(error) => Poll::Ready(error),
            None => {
                set_waker(&mut state.send_waker, cx);
                Poll::Pending
            }
        }
    }

    /// Ends it early.
    pub fn reset(&self, code: ErrorCode) {
        let mut state = self.state.borrow_mut();
        if state.error.is_none() && !state.is_complete() {
            state.error = Some(StreamError::Reset(code));
            self.connection.put_reset(state.id, code);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A server that has answered needs no more of the request; a client
        // that goes away needs no more of the answer.
        let code = if self.state.borrow().send_ended && self.connection.is_server() {
            ErrorCode::NoError
        } else {
            ErrorCode::Cancel
        };
        self.reset(code);
        let id = self.state.borrow().id;
        self.connection.forget(id);
    }
}

fn set_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}
