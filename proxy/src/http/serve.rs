//! Connections that requests come by: one after the other in HTTP/1, side by
//! side in HTTP/2.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::exchange::{Next, exchange};
use super::fields::Known;
use super::h1::{self, Framing, HeadError, Message};
use super::h2::{Connection, Dialect, Role, Stream, drive};
use super::head::{RequestHead, Version};
use super::leg::Leg;
use super::local::LocalResponse;
use super::plan::Side;
use crate::telemetry::Flag;
use crate::transport::Io;
use crate::worker::IdleGuard;

/// For a head that has begun to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves HTTP/1 until the connection ends.
pub async fn serve_h1(side: &Side, io: Io) {
    let mut leg = Leg::H1(Box::new(Message::new(io)));
    let mut idle = side.worker().idle.register(side.leaves());
    loop {
        let Leg::H1(message) = &mut leg else { return };
        match next_request(message, &mut idle).await {
            Ok(Some((head, framing))) => {
                message.start_reading(framing);
                // In a box of its own, so that an idle connection is small.
                let head = Rc::new(head);
                let next = Box::pin(exchange(side, &mut leg, head, framing)).await;
                if next == Next::Close {
                    break;
                }
                idle.answered();
            }
            Ok(None) => break,
            Err(error) => {
                refuse(side, &mut leg, &error).await;
                break;
            }
        }
    }
    if let Leg::H1(message) = &mut leg
        && !message.peer_ended()
    {
        linger(message).await;
    }
}

type Request = (RequestHead, Framing);

/// Waits for a request. `None`: the connection has ended, or ought to, and no
/// request has begun.
async fn next_request(
    message: &mut Message,
    idle: &mut IdleGuard<'_>,
) -> io::Result<Option<Request>> {
    let mut parse = |bytes: &[u8]| {
        let mut head = RequestHead::default();
        let parsed = h1::parse_request(bytes, &mut head)?;
        Ok::<_, HeadError>(parsed.map(|(length, framing)| (length, (head, framing))))
    };
    let begun = poll_fn(|cx| match message.poll_head(cx, &mut parse) {
        Poll::Ready(head) => Poll::Ready(Some(head)),
        Poll::Pending if message.has_input() => Poll::Ready(None),
        // An idle connection ends when the application has gone: until then a
        // request that is on its way is answered.
        Poll::Pending if idle.must_end(cx.waker()) => Poll::Ready(Some(Ok(None))),
        Poll::Pending => {
            message.release();
            Poll::Pending
        }
    })
    .await;
    if let Some(head) = begun {
        return head;
    }
    let rest = poll_fn(|cx| message.poll_head(cx, &mut parse));
    tokio::time::timeout(HEAD_TIMEOUT, rest)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Says what is wrong with a request that could not be read.
async fn refuse(side: &Side, leg: &mut Leg, error: &io::Error) {
    let head = error.get_ref().and_then(|e| e.downcast_ref::<HeadError>());
    let status = match (head, error.kind()) {
        (Some(head), _) => head.status(),
        (None, io::ErrorKind::TimedOut) => 408,
        _ => return,
    };
    tracing::debug!(%error, "a request was refused");
    let mut response = LocalResponse::new(Flag::Malformed);
    response.status = status;
    let id = format!("{:016x}", side.worker().random());
    response.send(leg, false, Version::H11, &id, true);
    let _ = poll_fn(|cx| leg.poll_finish(cx)).await;
    let outcome = crate::telemetry::Outcome {
        status,
        grpc: None,
        flag: Flag::Malformed,
    };
    side.edge(None, None, "http")
        .request(outcome, Duration::ZERO);
}

/// Ends the sending side and reads on for a moment, so that the last answer is
/// not lost to a reset (RFC 9112 section 9.6).
async fn linger(message: &mut Message) {
    let drain = poll_fn(|cx| {
        if message.poll_shutdown(cx).is_pending() {
            return Poll::Pending;
        }
        let mut scratch = crate::buffers::take_scratch();
        let read = loop {
            match message.io.poll_read(cx, &mut scratch) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => break Poll::Ready(()),
                Poll::Pending => break Poll::Pending,
            }
        };
        crate::buffers::put_back(scratch);
        read
    });
    let _ = tokio::time::timeout(Duration::from_secs(1), drain).await;
}

/// Serves HTTP/2, or the mesh's framing, until the connection ends.
pub async fn serve_h2(side: Rc<Side>, io: Io, initial: Vec<u8>, dialect: Dialect) {
    let connection = Connection::new(Role::Server, dialect);
    let worker = side.worker().clone();
    let _served = worker
        .served
        .register(&worker, side.leaves(), connection.clone());
    let ended = drive(connection.clone(), io, initial, |stream, head| {
        let side = side.clone();
        // Boxed: the runtime moves a task several times before it runs.
        tokio::task::spawn_local(Box::pin(answer(side, stream, head)));
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

fn answer(side: Rc<Side>, stream: Stream, head: RequestHead) -> impl Future<Output = ()> {
    let framing = body_framing(&stream, &head);
    let head = Rc::new(head);
    let mut leg = Leg::H2(stream);
    async move {
        exchange(&side, &mut leg, head, framing).await;
    }
}

/// How a body that came in frames is framed where frames are not spoken.
fn body_framing(stream: &Stream, head: &RequestHead) -> Framing {
    if stream.complete_body() == Some(0) || head.wants_tunnel() {
        return Framing::None;
    }
    let length = head.fields.known(Known::ContentLength).next();
    match length.and_then(|l| std::str::from_utf8(l).ok()?.parse().ok()) {
        Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    }
}
