//! What each received frame does (RFC 9113 section 6).

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::block::{self, BlockError};
use super::connection::{CONNECTION_WINDOW, Connection, Role, STREAM_WINDOW, State};
use super::frame::{self, ErrorCode, FrameHead, HEAD, MAX_PAYLOAD, PREFACE, flag, kind, setting};
use super::stream::{Stream, StreamError, StreamState};
use crate::clock;
use crate::http::fields::Known;
use crate::http::head::RequestHead;

/// Largest encoded field block, in bytes.
const MAX_BLOCK: usize = 64 * 1024;
/// Most CONTINUATION frames of a block.
const MAX_CONTINUATIONS: u32 = 16;
const MAX_WINDOW: i64 = 0x7fff_ffff;

/// HEADERS whose CONTINUATION is to come.
pub(super) struct PartialBlock {
    stream: u32,
    end_stream: bool,
    block: Vec<u8>,
    continuations: u32,
}

/// Whom an error ends.
enum FrameError {
    Connection(ErrorCode),
    Stream(u32, ErrorCode),
}

use FrameError::Connection as Fatal;

type Handled = Result<Option<(Stream, RequestHead)>, FrameError>;

/// Handles all whole frames in `input`, and returns how many bytes they were.
pub(super) fn frames(
    connection: &Rc<Connection>,
    input: &[u8],
    on_request: &mut impl FnMut(Stream, RequestHead),
) -> io::Result<usize> {
    let mut used = 0;
    connection.state.borrow_mut().last_read = clock::coarse();
    if !connection.state.borrow().preface_seen {
        let start = input
            .get(..PREFACE.len().min(input.len()))
            .unwrap_or_default();
        if !PREFACE.starts_with(start) {
            return Err(fail(connection, ErrorCode::ProtocolError));
        }
        if start.len() < PREFACE.len() {
            return Ok(0);
        }
        connection.state.borrow_mut().preface_seen = true;
        used = PREFACE.len();
    }
    loop {
        let rest = input.get(used..).unwrap_or_default();
        let Some(head) = FrameHead::parse(rest) else {
            return Ok(used);
        };
        if head.length > MAX_PAYLOAD {
            return Err(fail(connection, ErrorCode::FrameSizeError));
        }
        let Some(payload) = rest.get(HEAD..HEAD + head.length) else {
            return Ok(used);
        };
        used += HEAD + head.length;
        match handle(connection, head, payload) {
            Ok(None) => {}
            Ok(Some((stream, request))) => on_request(stream, request),
            Err(FrameError::Connection(code)) => return Err(fail(connection, code)),
            Err(FrameError::Stream(id, code)) => {
                let mut state = connection.state.borrow_mut();
                state.put_reset(id, code);
                if let Some(stream) = state.streams.get(&id) {
                    stream.borrow_mut().fail(StreamError::Malformed);
                }
                if state.is_flooded() {
                    drop(state);
                    return Err(fail(connection, ErrorCode::EnhanceYourCalm));
                }
            }
        }
    }
}

/// Says why, and closes.
fn fail(connection: &Connection, code: ErrorCode) -> io::Error {
    let mut state = connection.state.borrow_mut();
    let last = state.last_peer_stream;
    frame::put_goaway(&mut state.out, last, code);
    state.closed = true;
    io::Error::new(io::ErrorKind::InvalidData, format!("HTTP/2: {code:?}"))
}

fn handle(connection: &Rc<Connection>, head: FrameHead, payload: &[u8]) -> Handled {
    let mut state = connection.state.borrow_mut();
    let state = &mut *state;
    if !state.settings_seen {
        if head.kind != kind::SETTINGS || head.has(flag::ACK) {
            return Err(Fatal(ErrorCode::ProtocolError));
        }
        state.settings_seen = true;
    }
    if let Some(partial) = &state.partial
        && (head.kind != kind::CONTINUATION || head.stream != partial.stream)
    {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    match head.kind {
        kind::DATA => data(state, head, payload).map(|()| None),
        kind::HEADERS => headers(connection, state, head, payload),
        kind::CONTINUATION => continuation(connection, state, head, payload),
        kind::RST_STREAM => reset(state, head, payload).map(|()| None),
        kind::SETTINGS => settings(state, head, payload).map(|()| None),
        kind::PING => ping(state, head, payload).map(|()| None),
        kind::GOAWAY => goaway(state, head, payload).map(|()| None),
        kind::WINDOW_UPDATE => window_update(state, head, payload).map(|()| None),
        kind::PRIORITY => priority(state, head, payload).map(|()| None),
        kind::PUSH_PROMISE => Err(Fatal(ErrorCode::ProtocolError)),
        // Unknown types are ignored (section 4.1).
        _ if state.is_flooded() => Err(Fatal(ErrorCode::EnhanceYourCalm)),
        _ => Ok(None),
    }
}

/// Whether the peer, or we, have never used this stream.
fn is_idle(state: &State, id: u32) -> bool {
    let ours = (id % 2 == 1) == (state.role == Role::Client);
    if ours {
        id >= state.next_stream
    } else {
        id > state.last_peer_stream
    }
}

/// Takes the padding off (section 6.1).
fn unpad(head: FrameHead, payload: &[u8]) -> Result<&[u8], FrameError> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let (&padding, rest) = payload
        .split_first()
        .ok_or(Fatal(ErrorCode::FrameSizeError))?;
    let length = rest.len().checked_sub(padding as usize);
    let length = length.ok_or(Fatal(ErrorCode::ProtocolError))?;
    Ok(rest.get(..length).unwrap_or_default())
}

fn data(state: &mut State, head: FrameHead, payload: &[u8]) -> Result<(), FrameError> {
    if head.stream == 0 || is_idle(state, head.stream) {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    let body = unpad(head, payload)?;
    if body.is_empty() && !head.has(flag::END_STREAM) && state.is_flooded() {
        return Err(Fatal(ErrorCode::EnhanceYourCalm));
    }
    state.received += payload.len() as u32;
    if state.received > CONNECTION_WINDOW / 4 {
        frame::put_window_update(&mut state.out, 0, state.received);
        state.received = 0;
    }
    let Some(stream) = state.streams.get(&head.stream) else {
        if state.was_reset(head.stream) {
            return Ok(());
        }
        return Err(FrameError::Stream(head.stream, ErrorCode::StreamClosed));
    };
    let mut stream = stream.borrow_mut();
    if stream.receive_ended || stream.peer_reset {
        return Err(FrameError::Stream(head.stream, ErrorCode::StreamClosed));
    }
    stream.receive_window -= payload.len() as i64;
    if stream.receive_window < 0 {
        return Err(FrameError::Stream(head.stream, ErrorCode::FlowControlError));
    }
    if state.role == Role::Client && !stream.answered {
        return Err(FrameError::Stream(head.stream, ErrorCode::ProtocolError));
    }
    if stream.error.is_some() {
        return Ok(());
    }
    let left = stream
        .length_left
        .map(|left| left.checked_sub(body.len() as u64));
    if left == Some(None) {
        return Err(FrameError::Stream(head.stream, ErrorCode::ProtocolError));
    }
    stream.length_left = left.flatten();
    // Padding is used up at once.
    stream.consumed += (payload.len() - body.len()) as u32;
    stream.data.extend_from_slice(body);
    if head.has(flag::END_STREAM) {
        end_of_body(&mut stream)?;
    }
    stream.wake_receiver();
    Ok(())
}

fn end_of_body(stream: &mut StreamState) -> Result<(), FrameError> {
    if stream.length_left.is_some_and(|left| left > 0) {
        return Err(FrameError::Stream(stream.id, ErrorCode::ProtocolError));
    }
    stream.receive_ended = true;
    Ok(())
}

fn headers(
    connection: &Rc<Connection>,
    state: &mut State,
    head: FrameHead,
    payload: &[u8],
) -> Handled {
    if head.stream == 0 {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    let mut block = unpad(head, payload)?;
    if head.has(flag::PRIORITY) {
        let (priority, rest) = block
            .split_at_checked(5)
            .ok_or(Fatal(ErrorCode::FrameSizeError))?;
        if depends_on(priority) == head.stream {
            return Err(Fatal(ErrorCode::ProtocolError));
        }
        block = rest;
    }
    let end_stream = head.has(flag::END_STREAM);
    if head.has(flag::END_HEADERS) {
        return block_complete(connection, state, head.stream, end_stream, block);
    }
    state.partial = Some(PartialBlock {
        stream: head.stream,
        end_stream,
        block: block.to_vec(),
        continuations: 0,
    });
    Ok(None)
}

fn continuation(
    connection: &Rc<Connection>,
    state: &mut State,
    head: FrameHead,
    payload: &[u8],
) -> Handled {
    let mut partial = state
        .partial
        .take()
        .ok_or(Fatal(ErrorCode::ProtocolError))?;
    partial.continuations += 1;
    if partial.block.len() + payload.len() > MAX_BLOCK || partial.continuations > MAX_CONTINUATIONS
    {
        return Err(Fatal(ErrorCode::EnhanceYourCalm));
    }
    partial.block.extend_from_slice(payload);
    if head.has(flag::END_HEADERS) {
        let PartialBlock {
            stream,
            end_stream,
            block,
            ..
        } = partial;
        return block_complete(connection, state, stream, end_stream, &block);
    }
    state.partial = Some(partial);
    Ok(None)
}

fn block_complete(
    connection: &Rc<Connection>,
    state: &mut State,
    id: u32,
    end_stream: bool,
    block: &[u8],
) -> Handled {
    let outcome = match state.streams.get(&id).cloned() {
        Some(stream) if stream.borrow().receive_ended || stream.borrow().peer_reset => {
            match state.decoder.decode(block, |_, _| ()) {
                Ok(()) => return Err(FrameError::Stream(id, ErrorCode::StreamClosed)),
                Err(_) => Err(BlockError::Compression),
            }
        }
        Some(stream) => {
            let head_expected = state.role == Role::Client && !stream.borrow().answered;
            if head_expected {
                response(state, &stream, end_stream, block)
            } else {
                trailers(state, &stream, end_stream, block)
            }
            .map(|()| None)
        }
        None if is_idle(state, id) && state.role == Role::Server && id % 2 == 1 => {
            request(connection, state, id, end_stream, block)
        }
        None if is_idle(state, id) => return Err(Fatal(ErrorCode::ProtocolError)),
        None => {
            // A stream that has ended; its block still feeds the decoder.
            match state.decoder.decode(block, |_, _| ()) {
                Ok(()) if state.was_reset(id) => Ok(None),
                Ok(()) => return Err(Fatal(ErrorCode::StreamClosed)),
                Err(_) => Err(BlockError::Compression),
            }
        }
    };
    outcome.map_err(|error| match error {
        BlockError::Compression => Fatal(ErrorCode::CompressionError),
        BlockError::Malformed => FrameError::Stream(id, ErrorCode::ProtocolError),
        BlockError::TooLarge => FrameError::Stream(id, ErrorCode::EnhanceYourCalm),
    })
}

/// The body's length as announced. Unlike values are malformed.
fn content_length(fields: &crate::http::fields::Fields) -> Result<Option<u64>, BlockError> {
    let mut length = None;
    for value in fields.known(Known::ContentLength) {
        let value = std::str::from_utf8(value)
            .ok()
            .filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|v| v.parse::<u64>().ok())
            .ok_or(BlockError::Malformed)?;
        if length.replace(value).is_some_and(|before| before != value) {
            return Err(BlockError::Malformed);
        }
    }
    Ok(length)
}

fn request(
    connection: &Rc<Connection>,
    state: &mut State,
    id: u32,
    end_stream: bool,
    block: &[u8],
) -> Result<Option<(Stream, RequestHead)>, BlockError> {
    let refused = state.goaway_sent.is_some_and(|last| id > last)
        || state.streams.len() >= state.limits.streams as usize;
    state.last_peer_stream = id;
    let head = block::parse_request(&mut state.decoder, block, state.dialect)?;
    if refused {
        state.put_reset(id, ErrorCode::RefusedStream);
        return Ok(None);
    }
    let length = content_length(&head.fields)?;
    if end_stream && length.is_some_and(|l| l > 0) {
        return Err(BlockError::Malformed);
    }
    let stream = Rc::new(RefCell::new(StreamState {
        id,
        receive_window: STREAM_WINDOW,
        send_window: state.peer_initial_window,
        receive_ended: end_stream,
        length_left: length,
        answered: true,
        ..StreamState::default()
    }));
    state.streams.insert(id, stream.clone());
    Ok(Some((connection.accepted(stream), head)))
}

fn response(
    state: &mut State,
    stream: &Rc<RefCell<StreamState>>,
    end_stream: bool,
    block: &[u8],
) -> Result<(), BlockError> {
    let head = block::parse_response(&mut state.decoder, block, state.dialect)?;
    let mut stream = stream.borrow_mut();
    if !head.is_interim() {
        stream.answered = true;
        let length = content_length(&head.fields)?;
        // A response to HEAD may announce a body that never comes.
        stream.length_left = if end_stream { None } else { length };
    } else if end_stream {
        return Err(BlockError::Malformed);
    }
    stream.receive_ended |= end_stream;
    stream.heads.push_back(head);
    stream.wake_receiver();
    Ok(())
}

fn trailers(
    state: &mut State,
    stream: &Rc<RefCell<StreamState>>,
    end_stream: bool,
    block: &[u8],
) -> Result<(), BlockError> {
    let fields = block::parse_trailers(&mut state.decoder, block, state.dialect)?;
    let mut stream = stream.borrow_mut();
    let short = stream.length_left.is_some_and(|left| left > 0);
    if !end_stream || stream.receive_ended || short {
        return Err(BlockError::Malformed);
    }
    stream.trailers = Some(fields);
    stream.receive_ended = true;
    stream.wake_receiver();
    Ok(())
}

fn depends_on(priority: &[u8]) -> u32 {
    let bytes = priority.first_chunk::<4>().copied().unwrap_or_default();
    u32::from_be_bytes(bytes) & 0x7fff_ffff
}

fn priority(state: &mut State, head: FrameHead, payload: &[u8]) -> Result<(), FrameError> {
    if head.stream == 0 {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    if payload.len() != 5 {
        return Err(FrameError::Stream(head.stream, ErrorCode::FrameSizeError));
    }
    if depends_on(payload) == head.stream {
        return Err(FrameError::Stream(head.stream, ErrorCode::ProtocolError));
    }
    if state.is_flooded() {
        return Err(Fatal(ErrorCode::EnhanceYourCalm));
    }
    Ok(())
}

fn reset(state: &mut State, head: FrameHead, payload: &[u8]) -> Result<(), FrameError> {
    let code = payload.first_chunk::<4>().filter(|_| payload.len() == 4);
    let code = u32::from_be_bytes(*code.ok_or(Fatal(ErrorCode::FrameSizeError))?);
    if head.stream == 0 || is_idle(state, head.stream) {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    if let Some(stream) = state.streams.get(&head.stream) {
        let mut stream = stream.borrow_mut();
        stream.peer_reset = true;
        match ErrorCode::from_u32(code) {
            ErrorCode::RefusedStream => stream.fail(StreamError::Refused),
            // After a whole response: the server needs no more of the request.
            ErrorCode::NoError if stream.receive_ended => {
                stream.send_ended = true;
                stream.send_window = i64::MAX / 2;
                stream
                    .error
                    .get_or_insert(StreamError::Reset(ErrorCode::NoError));
                stream.wake_all();
            }
            code => stream.fail(StreamError::Reset(code)),
        }
    }
    if state.is_flooded() {
        return Err(Fatal(ErrorCode::EnhanceYourCalm));
    }
    Ok(())
}

fn settings(state: &mut State, head: FrameHead, payload: &[u8]) -> Result<(), FrameError> {
    if head.stream != 0 {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    if head.has(flag::ACK) {
        return if payload.is_empty() {
            Ok(())
        } else {
            Err(Fatal(ErrorCode::FrameSizeError))
        };
    }
    if !payload.len().is_multiple_of(6) {
        return Err(Fatal(ErrorCode::FrameSizeError));
    }
    for entry in payload.chunks_exact(6) {
        let [i0, i1, v0, v1, v2, v3] = *entry.first_chunk().unwrap_or(&[0; 6]);
        let value = u32::from_be_bytes([v0, v1, v2, v3]);
        apply_setting(state, u16::from_be_bytes([i0, i1]), value)?;
    }
    frame::put_settings_ack(&mut state.out);
    state.wake_waiting();
    if state.is_flooded() {
        return Err(Fatal(ErrorCode::EnhanceYourCalm));
    }
    Ok(())
}

fn apply_setting(state: &mut State, id: u16, value: u32) -> Result<(), FrameError> {
    match id {
        setting::ENABLE_PUSH if value > 1 => Err(Fatal(ErrorCode::ProtocolError)),
        setting::MAX_CONCURRENT_STREAMS => {
            state.peer_max_streams = value;
            Ok(())
        }
        setting::INITIAL_WINDOW_SIZE => {
            if i64::from(value) > MAX_WINDOW {
                return Err(Fatal(ErrorCode::FlowControlError));
            }
            let change = i64::from(value) - state.peer_initial_window;
            state.peer_initial_window = i64::from(value);
            for stream in state.streams.values() {
                let mut stream = stream.borrow_mut();
                stream.send_window += change;
                if stream.send_window > MAX_WINDOW {
                    return Err(Fatal(ErrorCode::FlowControlError));
                }
                if let Some(waker) = stream.send_waker.take() {
                    waker.wake();
                }
            }
            Ok(())
        }
        setting::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
            Err(Fatal(ErrorCode::ProtocolError))
        }
        _ => Ok(()),
    }
}

fn ping(state: &mut State, head: FrameHead, payload: &[u8]) -> Result<(), FrameError> {
    if head.stream != 0 {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    let payload = payload.first_chunk::<8>().filter(|_| payload.len() == 8);
    let payload = *payload.ok_or(Fatal(ErrorCode::FrameSizeError))?;
    if !head.has(flag::ACK) {
        frame::put_ping(&mut state.out, true, payload);
        if state.is_flooded() {
            return Err(Fatal(ErrorCode::EnhanceYourCalm));
        }
    }
    Ok(())
}

fn goaway(state: &mut State, head: FrameHead, payload: &[u8]) -> Result<(), FrameError> {
    if head.stream != 0 {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    let last = payload.first_chunk::<4>().filter(|_| payload.len() >= 8);
    let last = u32::from_be_bytes(*last.ok_or(Fatal(ErrorCode::FrameSizeError))?) & 0x7fff_ffff;
    state.goaway = Some(last.min(state.goaway.unwrap_or(u32::MAX)));
    if state.role == Role::Client {
        for stream in state.streams.values() {
            let mut stream = stream.borrow_mut();
            if stream.id > last {
                stream.fail(StreamError::Refused);
            }
        }
    }
    state.wake_waiting();
    Ok(())
}

fn window_update(state: &mut State, head: FrameHead, payload: &[u8]) -> Result<(), FrameError> {
    let increment = payload.first_chunk::<4>().filter(|_| payload.len() == 4);
    let increment = u32::from_be_bytes(*increment.ok_or(Fatal(ErrorCode::FrameSizeError))?);
    let increment = i64::from(increment & 0x7fff_ffff);
    if head.stream == 0 {
        state.send_window += increment;
        if increment == 0 {
            return Err(Fatal(ErrorCode::ProtocolError));
        }
        if state.send_window > MAX_WINDOW {
            return Err(Fatal(ErrorCode::FlowControlError));
        }
        state.wake_waiting();
        return Ok(());
    }
    if is_idle(state, head.stream) {
        return Err(Fatal(ErrorCode::ProtocolError));
    }
    if increment == 0 {
        return Err(FrameError::Stream(head.stream, ErrorCode::ProtocolError));
    }
    if let Some(stream) = state.streams.get(&head.stream) {
        let mut stream = stream.borrow_mut();
        stream.send_window += increment;
        if stream.send_window > MAX_WINDOW {
            return Err(FrameError::Stream(head.stream, ErrorCode::FlowControlError));
        }
        if let Some(waker) = stream.send_waker.take() {
            waker.wake();
        }
    }
    Ok(())
}
