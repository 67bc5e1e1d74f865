//! One connection: its streams, its windows, and the task that moves bytes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::Dialect;
use super::block;
use super::frame::{self, ErrorCode, MAX_PAYLOAD, PREFACE, setting};
use super::hpack::Decoder;
use super::receive;
use super::stream::{Stream, StreamError, StreamState};
use crate::buffers::{put_back, take_scratch};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::transport::Io;

/// What one stream may have in flight towards us.
pub(super) const STREAM_WINDOW: i64 = 256 * 1024;
/// What a connection may: practically unlimited, because bytes are charged to
/// their streams, so that a slow one never holds up the others.
pub(super) const CONNECTION_WINDOW: u32 = 1 << 30;
/// RFC 9113 section 6.9.2.
const INITIAL_WINDOW: i64 = 65_535;
/// Bytes queued for sending above which streams wait.
const OUT_LIMIT: usize = 128 * 1024;
/// Memory kept in buffers of a quiet connection.
const KEEP_BUFFER: usize = 4 * 1024;
/// Reads before others get their turn.
const READS_PER_TURN: usize = 8;
/// Stream numbers end here; a new connection takes over.
const LAST_STREAM: u32 = 0x3fff_ffff;

/// Which side of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// What a connection tolerates.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams open at once, towards a server.
    pub streams: u32,
    /// Frames in a second that carry no request forward (pings, settings,
    /// resets, empty data).
    pub overhead_frames: u32,
}

impl Limits {
    /// For applications.
    pub const STANDARD: Self = Self {
        streams: 1024,
        overhead_frames: 2_000,
    };
    /// For the mesh's proxies, which carry many clients' requests.
    pub const MESH: Self = Self {
        streams: 65_536,
        overhead_frames: 200_000,
    };
}

/// Why no stream can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The connection is closing or closed.
    Closed,
    /// The peer allows no more at once.
    Full,
}

pub(super) struct State {
    pub role: Role,
    pub dialect: Dialect,
    pub limits: Limits,
    pub out: Vec<u8>,
    pub streams: HashMap<u32, Rc<RefCell<StreamState>>, StreamHash>,
    pub next_stream: u32,
    /// Highest stream that the peer opened.
    pub last_peer_stream: u32,
    pub send_window: i64,
    pub peer_initial_window: i64,
    pub peer_max_streams: u32,
    /// Received and not yet given back.
    pub received: u32,
    pub decoder: Decoder,
    /// A field block that continues in the next frame.
    pub partial: Option<receive::PartialBlock>,
    pub preface_seen: bool,
    pub settings_seen: bool,
    pub overhead: u32,
    pub overhead_since: Instant,
    /// The peer takes no streams above this.
    pub goaway: Option<u32>,
    /// We take no streams above this; 0x7fffffff while announcing only.
    pub goaway_sent: Option<u32>,
    /// The peer is told to leave with the next answer after which it waits for none.
    leaving: bool,
    pub closing: bool,
    pub closed: bool,
    /// Streams that we reset lately: what the peer had sent on them before it
    /// knew is ignored.
    reset_lately: std::collections::VecDeque<u32>,
    waiting: Vec<Waker>,
    driver: Option<Waker>,
    pub last_read: Instant,
    ping_sent: Option<Instant>,
}

/// Stream numbers are small and unlike: they hash to themselves.
#[derive(Default, Clone, Copy)]
pub(super) struct StreamHash;

impl std::hash::BuildHasher for StreamHash {
    type Hasher = StreamHasher;
    fn build_hasher(&self) -> StreamHasher {
        StreamHasher(0)
    }
}

pub(super) struct StreamHasher(u64);

impl std::hash::Hasher for StreamHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*b);
        }
    }
    fn write_u32(&mut self, id: u32) {
        // Multiplying spreads the low bits over the high ones, which the map uses.
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A connection as its streams see it. `drive` moves its bytes.
pub struct Connection {
    pub(super) state: RefCell<State>,
}

impl Connection {
    /// A connection that has said nothing yet but its own preface.
    pub fn new(role: Role, dialect: Dialect) -> Rc<Self> {
        let limits = match dialect {
            Dialect::Standard => Limits::STANDARD,
            Dialect::Mesh => Limits::MESH,
        };
        let table = match dialect {
            Dialect::Standard => 4096,
            Dialect::Mesh => 0,
        };
        let mut out = Vec::new();
        if role == Role::Client {
            out.extend_from_slice(PREFACE);
        }
        let mut settings = vec![
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW as u32),
            (setting::MAX_HEADER_LIST_SIZE, block::MAX_LIST as u32),
        ];
        match role {
            Role::Client => settings.push((setting::ENABLE_PUSH, 0)),
            Role::Server => settings.push((setting::MAX_CONCURRENT_STREAMS, limits.streams)),
        }
        if table == 0 {
            settings.push((setting::HEADER_TABLE_SIZE, 0));
        }
        frame::put_settings(&mut out, &settings);
        frame::put_window_update(&mut out, 0, CONNECTION_WINDOW - INITIAL_WINDOW as u32);
        let now = Instant::now();
        Rc::new(Self {
            state: RefCell::new(State {
                role,
                dialect,
                limits,
                out,
                streams: HashMap::default(),
                next_stream: 1,
                last_peer_stream: 0,
                send_window: INITIAL_WINDOW,
                peer_initial_window: INITIAL_WINDOW,
                peer_max_streams: limits.streams,
                received: 0,
                decoder: Decoder::new(table),
                partial: None,
                preface_seen: role == Role::Client,
                settings_seen: false,
                overhead: 0,
                overhead_since: now,
                goaway: None,
                goaway_sent: None,
                leaving: false,
                closing: false,
                closed: false,
                reset_lately: std::collections::VecDeque::new(),
                waiting: Vec::new(),
                driver: None,
                last_read: now,
                ping_sent: None,
            }),
        })
    }

    pub(super) fn is_server(&self) -> bool {
        self.state.borrow().role == Role::Server
    }

    /// Opens a stream with a request's head. `end`: no body follows.
    pub fn open(self: &Rc<Self>, head: &RequestHead, end: bool) -> Result<Stream, OpenError> {
        self.can_open()?;
        let mut state = self.state.borrow_mut();
        let id = state.next_stream;
        state.next_stream += 2;
        let stream = Rc::new(RefCell::new(StreamState {
            id,
            receive_window: STREAM_WINDOW,
            send_window: state.peer_initial_window,
            send_ended: end,
            ..StreamState::default()
        }));
        state.streams.insert(id, stream.clone());
        let dialect = state.dialect;
        frame::put_headers(&mut state.out, id, end, |out| {
            block::put_request(out, head, dialect)
        });
        state.wake_driver();
        Ok(Stream {
            connection: self.clone(),
            state: stream,
        })
    }

    /// Whether a stream can be opened now.
    pub fn can_open(&self) -> Result<(), OpenError> {
        let state = self.state.borrow();
        if state.closed
            || state.closing
            || state.goaway.is_some()
            || state.next_stream > LAST_STREAM
        {
            Err(OpenError::Closed)
        } else if state.streams.len() >= state.peer_max_streams as usize {
            Err(OpenError::Full)
        } else {
            Ok(())
        }
    }

    /// Says that no further streams are wanted, without refusing any that are
    /// on their way (first phase of RFC 9113 section 6.8).
    pub fn announce_shutdown(&self) {
        self.state.borrow_mut().announce_shutdown();
    }

    /// Says so together with the end of the next answer after which the peer
    /// waits for no other.
    pub fn announce_shutdown_with_answer(&self) {
        self.state.borrow_mut().leaving = true;
    }

    /// What is spoken on it.
    pub fn dialect(&self) -> Dialect {
        self.state.borrow().dialect
    }

    /// Takes no further streams, and closes when those open have ended.
    pub fn shutdown(&self) {
        let mut state = self.state.borrow_mut();
        if state.closing || state.closed {
            return;
        }
        state.closing = true;
        let last = state.last_peer_stream;
        state.goaway_sent = Some(last);
        frame::put_goaway(&mut state.out, last, ErrorCode::NoError);
        state.wake_driver();
    }

    /// Notices a peer that is gone: called about once a second. A peer that has
    /// been silent while streams wait for it is asked, then given up.
    pub fn check_alive(&self, now: Instant) {
        const SILENCE: Duration = Duration::from_secs(10);
        let mut state = self.state.borrow_mut();
        if state.closed || state.streams.is_empty() {
            return;
        }
        match state.ping_sent {
            // Both are times of ticks.
            Some(sent) if state.last_read >= sent => state.ping_sent = None,
            Some(sent) if now.duration_since(sent) > SILENCE => {
                state.closed = true;
                state.wake_driver();
            }
            Some(_) => {}
            None if now.duration_since(state.last_read) > SILENCE => {
                state.ping_sent = Some(now);
                frame::put_ping(&mut state.out, false, *b"weftping");
                state.wake_driver();
            }
            None => {}
        }
    }

    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        let mut state = self.state.borrow_mut();
        let window = usize::try_from(state.send_window).unwrap_or(0);
        let room = OUT_LIMIT.saturating_sub(state.out.len());
        if window > 0 && room > 0 {
            return Poll::Ready(window.min(room));
        }
        state.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn put_data(&self, id: u32, data: &[u8], end: bool) {
        let mut state = self.state.borrow_mut();
        state.send_window -= data.len() as i64;
        frame::put_data(&mut state.out, id, data, end);
        state.said(end);
    }

    pub(super) fn put_trailers(&self, id: u32, fields: &Fields) {
        let mut state = self.state.borrow_mut();
        let dialect = state.dialect;
        frame::put_headers(&mut state.out, id, true, |out| {
            block::put_fields(out, fields, dialect)
        });
        state.said(true);
    }

    pub(super) fn put_response(&self, id: u32, head: &ResponseHead, end: bool) {
        let mut state = self.state.borrow_mut();
        let dialect = state.dialect;
        frame::put_headers(&mut state.out, id, end, |out| {
            block::put_response(out, head, dialect)
        });
        state.said(end);
    }

    pub(super) fn put_reset(&self, id: u32, code: ErrorCode) {
        let mut state = self.state.borrow_mut();
        state.put_reset(id, code);
        state.wake_driver();
    }

    /// Gives a stream's window back once half of it has been used.
    pub(super) fn return_window(&self, stream: &mut StreamState) {
        if i64::from(stream.consumed) >= STREAM_WINDOW / 2 {
            let mut state = self.state.borrow_mut();
            frame::put_window_update(&mut state.out, stream.id, stream.consumed);
            stream.receive_window += i64::from(stream.consumed);
            stream.consumed = 0;
            state.wake_driver();
        }
    }

    pub(super) fn forget(&self, id: u32) {
        let mut state = self.state.borrow_mut();
        state.streams.remove(&id);
        if state.closing && state.streams.is_empty() {
            state.wake_driver();
        }
    }

    pub(super) fn accepted(self: &Rc<Self>, state: Rc<RefCell<StreamState>>) -> Stream {
        Stream {
            connection: self.clone(),
            state,
        }
    }

    /// Whether it can be used no more.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Whether the peer said that it wants no further streams.
    pub fn peer_left(&self) -> bool {
        self.state.borrow().goaway.is_some()
    }

    /// Whether the peer wants no further streams, or the connection is gone.
    pub fn is_draining(&self) -> bool {
        let state = self.state.borrow();
        state.closed || state.closing || state.goaway.is_some()
    }
}

/// Streams remembered as reset by us.
const MAX_RESET: usize = 64;

impl State {
    /// Something is to be sent on a stream. `end`: it was the last.
    fn said(&mut self, end: bool) {
        if end && self.leaving && self.streams.len() <= 1 {
            self.announce_shutdown();
        }
        self.wake_driver();
    }

    /// The first phase of a shutdown.
    fn announce_shutdown(&mut self) {
        if self.goaway_sent.is_some() || self.closed {
            return;
        }
        self.goaway_sent = Some(0x7fff_ffff);
        frame::put_goaway(&mut self.out, 0x7fff_ffff, ErrorCode::NoError);
        self.wake_driver();
    }

    /// Ends a stream early.
    pub fn put_reset(&mut self, id: u32, code: ErrorCode) {
        frame::put_reset(&mut self.out, id, code);
        if self.reset_lately.len() >= MAX_RESET {
            self.reset_lately.pop_front();
        }
        self.reset_lately.push_back(id);
    }

    /// Whether we reset a stream a short while ago.
    pub fn was_reset(&self, id: u32) -> bool {
        self.reset_lately.contains(&id)
    }

    pub fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    pub fn wake_waiting(&mut self) {
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }

    /// Counts a frame that carries nothing forward; true: there are too many.
    pub fn is_flooded(&mut self) -> bool {
        self.overhead += 1;
        if self.overhead <= self.limits.overhead_frames {
            return false;
        }
        let now = Instant::now();
        let too_fast = now.duration_since(self.overhead_since) < Duration::from_secs(1);
        self.overhead = 0;
        self.overhead_since = now;
        too_fast
    }

    /// Nothing more will be sent or received.
    pub fn close(&mut self) {
        self.closed = true;
        let goaway = self.goaway;
        for (id, stream) in self.streams.drain() {
            let unseen = goaway.is_some_and(|last| id > last) && self.role == Role::Client;
            let error = if unseen {
                StreamError::Refused
            } else {
                StreamError::Lost
            };
            let mut stream = stream.borrow_mut();
            if !stream.receive_ended {
                stream.fail(error);
            } else if !stream.send_ended {
                stream.error.get_or_insert(error);
                stream.wake_all();
            }
        }
        self.wake_waiting();
    }
}

/// Moves a connection's bytes until it ends. `initial` was read already;
/// `on_request` gets each request that the peer makes.
pub async fn drive(
    connection: Rc<Connection>,
    mut io: Io,
    initial: Vec<u8>,
    mut on_request: impl FnMut(Stream, RequestHead),
) -> io::Result<()> {
    let mut driver = Driver {
        connection: &connection,
        rest: Vec::new(),
        sending: Vec::new(),
        sent: 0,
        last_words: false,
    };
    let mut result = driver.take_in(&initial, &mut on_request);
    drop(initial);
    if result.is_ok() {
        result = poll_fn(|cx| driver.poll(cx, &mut io, &mut on_request)).await;
    }
    // A GOAWAY that says why is still sent.
    let mut driver = Driver {
        last_words: true,
        ..driver
    };
    let _ = tokio::time::timeout(
        Duration::from_secs(1),
        poll_fn(|cx| driver.poll_send(cx, &mut io)),
    )
    .await;
    connection.state.borrow_mut().close();
    io.close().await;
    result
}

struct Driver<'a> {
    connection: &'a Rc<Connection>,
    /// The start of a frame whose end has not come.
    rest: Vec<u8>,
    /// What is being written now.
    sending: Vec<u8>,
    sent: usize,
    last_words: bool,
}

impl Driver<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut Io,
        on_request: &mut impl FnMut(Stream, RequestHead),
    ) -> Poll<io::Result<()>> {
        self.connection.state.borrow_mut().driver = None;
        for _ in 0..READS_PER_TURN {
            if let Poll::Ready(Err(e)) = self.poll_send(cx, io) {
                return Poll::Ready(Err(e));
            }
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            let mut scratch = take_scratch();
            let read = io.poll_read(cx, &mut scratch);
            let outcome = match read {
                Poll::Pending => {
                    put_back(scratch);
                    let mut state = self.connection.state.borrow_mut();
                    state.driver = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Err(e)) => Err(e),
                Poll::Ready(Ok(0)) => {
                    put_back(scratch);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(n)) => {
                    self.take_in(scratch.get(..n).unwrap_or_default(), on_request)
                }
            };
            put_back(scratch);
            if let Err(e) = outcome {
                return Poll::Ready(Err(e));
            }
        }
        // The peer has more than its turn: others come first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_done(&self) -> bool {
        let state = self.connection.state.borrow();
        let nothing_left =
            state.streams.is_empty() && state.out.is_empty() && self.sending.is_empty();
        let peer_leaves = state.goaway.is_some() && state.role == Role::Client;
        state.closed || ((state.closing || peer_leaves) && nothing_left)
    }

    /// Writes all that is queued; `Ready` when nothing is left.
    fn poll_send(&mut self, cx: &mut Context<'_>, io: &mut Io) -> Poll<io::Result<()>> {
        loop {
            if self.sending.len() == self.sent {
                self.sending.clear();
                self.sent = 0;
                let mut state = self.connection.state.borrow_mut();
                if state.out.is_empty() || (state.closed && !self.last_words) {
                    if self.sending.capacity() > KEEP_BUFFER && !self.last_words {
                        self.sending = Vec::new();
                    }
                    drop(state);
                    return io.poll_flush(cx);
                }
                std::mem::swap(&mut state.out, &mut self.sending);
                state.wake_waiting();
            }
            let left = self.sending.get(self.sent..).unwrap_or_default();
            match io.poll_write(cx, left) {
                Poll::Ready(Ok(n)) => self.sent += n,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes in bytes: whole frames at once, the rest is kept.
    fn take_in(
        &mut self,
        bytes: &[u8],
        on_request: &mut impl FnMut(Stream, RequestHead),
    ) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut kept = std::mem::take(&mut self.rest);
        let input = if kept.is_empty() {
            bytes
        } else {
            kept.extend_from_slice(bytes);
            kept.as_slice()
        };
        let used = receive::frames(self.connection, input, on_request)?;
        let rest = input.get(used..).unwrap_or_default();
        if !rest.is_empty() {
            let mut keep = Vec::with_capacity(rest.len().max(MAX_PAYLOAD / 4));
            keep.extend_from_slice(rest);
            self.rest = keep;
        }
        Ok(())
    }
}
