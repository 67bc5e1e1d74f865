//! One request for one response, through these phases: plan (route or
//! authorize), attempt (pick, connect, send), retry, respond, record.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use super::copy::{Copy, CopyError, grpc_status};
use super::fields::{Fields, Known};
use super::h1::{self, Framing, Message};
use super::h2::OpenError;
use super::head::{RequestHead, ResponseHead, Version};
use super::leg::{Leg, LegError};
use super::local::LocalResponse;
use super::plan::{Plan, Side, Target};
use crate::telemetry::traces::{FinishedSpan, TraceParent};
use crate::telemetry::{Flag, Outcome};
use crate::upstream::{InFlight, Link, LocalEndpoint};
use crate::worker::ActiveCalls;

/// Attempts of which nothing reached the application, beyond the first.
const SAFE_RETRIES: usize = 3;

/// What the connection that the request came by is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait for another request.
    Continue,
    /// End.
    Close,
}

/// A request that is being answered.
struct Exchange<'a> {
    side: &'a Side,
    head: Rc<RequestHead>,
    framing: Framing,
    plan: Plan,
    grpc: bool,
    close: bool,
    upload: Copy,
}

/// The answer's head has come.
struct Answer {
    head: ResponseHead,
    framing: Framing,
    up: Leg,
    endpoint: Rc<LocalEndpoint>,
    in_flight: InFlight,
}

/// An attempt without an answer.
struct Failed {
    flag: Flag,
    /// Nothing of the request reached the application.
    safe: bool,
    caller_gone: bool,
}

impl Failed {
    fn new(flag: Flag, safe: bool) -> Self {
        Self {
            flag,
            safe,
            caller_gone: false,
        }
    }
}

/// How it ended, for the record.
struct End {
    outcome: Outcome,
    next: Next,
    endpoint: Option<Rc<LocalEndpoint>>,
    sent: u64,
    received: u64,
}

/// Answers one request. `framing` is that of its body.
///
/// What needs no waiting is done before the future is made, and what needs it
/// rarely is in a box: each request has one of these, below the size that the
/// allocator hands out fast (1,032 bytes).
pub fn exchange<'a>(
    side: &'a Side,
    down: &'a mut Leg,
    mut head: Rc<RequestHead>,
    framing: Framing,
) -> impl Future<Output = Next> + 'a {
    let start = Instant::now();
    let span = Span::begin(side, Rc::make_mut(&mut head));
    let grpc = head.is_grpc();
    let keeps_alive = h1::keeps_alive(&head.fields, head.version);
    let close = !keeps_alive || side.peer_leaves();
    let mut planned = match side.plan(&head) {
        Err(response) => Err((response, head)),
        Ok(plan) => {
            let own = Rc::make_mut(&mut head);
            if let Some(rule) = &plan.rule {
                rule.request_headers.apply(&mut own.fields);
                if let Some(rewrite) = &rule.rewrite {
                    own.rewrite(rewrite, &rule.matched_prefix);
                }
            }
            if let Some(backend) = plan.backend() {
                backend.request_headers.apply(&mut own.fields);
            }
            Ok(Exchange {
                side,
                head,
                framing,
                plan,
                grpc,
                close,
                upload: Copy::repeatable(),
            })
        }
    };
    async move {
        let end = match &mut planned {
            Ok(exchange) => exchange.run(down).await,
            Err((response, head)) => respond(side, down, response.clone(), head, framing).await,
        };
        let took = start.elapsed();
        let (plan, head) = match &planned {
            Ok(exchange) => (Some(&exchange.plan), &exchange.head),
            Err((_, head)) => (None, head),
        };
        let protocol = if grpc { "grpc" } else { "http" };
        let edge = side.edge(plan, end.endpoint.as_ref(), protocol);
        edge.request(end.outcome, took);
        if end.sent + end.received > 0 {
            edge.bytes(end.sent, end.received);
        }
        let tap = &side.worker().shared.tap;
        if tap.is_watched() {
            tap.show(head, end.outcome, took, edge.key());
        }
        if let Some(span) = span {
            span.finish(side, head, end.outcome, took, edge.key().clone());
        }
        end.next
    }
}

/// Answers in the application's place.
async fn respond(
    side: &Side,
    down: &mut Leg,
    mut response: LocalResponse,
    head: &RequestHead,
    framing: Framing,
) -> End {
    let grpc = head.is_grpc();
    response.without_body = head.method_bytes() == b"HEAD";
    let id = format!("{:016x}", side.worker().random());
    // A body that nobody reads would be taken for the next request.
    let next = match framing {
        Framing::None if !side.peer_leaves() => Next::Continue,
        _ => Next::Close,
    };
    response.send(down, grpc, head.version, &id, next == Next::Close);
    let _ = poll_fn(|cx| down.poll_finish(cx)).await;
    End {
        outcome: Outcome {
            status: if grpc { 200 } else { response.status },
            grpc: grpc.then(|| response.grpc_status()),
            flag: response.flag,
        },
        next,
        endpoint: None,
        sent: 0,
        received: 0,
    }
}

/// Boxed, so that the tasks of requests without a limit stay small.
fn within<'a>(
    limit: Duration,
    answer: impl Future<Output = Result<Answer, Failed>> + 'a,
) -> impl Future<Output = Result<Answer, Failed>> + 'a {
    let answer = Box::pin(tokio::time::timeout(limit, answer));
    async {
        answer
            .await
            .unwrap_or_else(|_| Err(Failed::new(Flag::Timeout, false)))
    }
}

impl Exchange<'_> {
    async fn run(&mut self, down: &mut Leg) -> End {
        let timeout = self.plan.rule.as_ref().and_then(|r| r.request_timeout);
        let answer = match timeout {
            None => self.attempts(down).await,
            Some(limit) => within(limit, self.attempts(down)).await,
        };
        match answer {
            Ok(answer) => self.relay(down, answer).await,
            Err(failed) if failed.caller_gone => {
                down.abort();
                End {
                    outcome: Outcome {
                        status: 499,
                        grpc: None,
                        flag: Flag::ClientGone,
                    },
                    next: Next::Close,
                    endpoint: None,
                    sent: self.upload.bytes,
                    received: 0,
                }
            }
            Err(failed) => {
                let response = LocalResponse::new(failed.flag);
                let framing = if self.upload.is_done() {
                    Framing::None
                } else {
                    self.framing
                };
                respond(self.side, down, response, &self.head, framing).await
            }
        }
    }

    /// Tries endpoints until one answers or nothing may be tried any more.
    async fn attempts(&mut self, down: &mut Leg) -> Result<Answer, Failed> {
        let worker = self.side.worker().clone();
        let rule = self.plan.rule.clone();
        let retry = rule.as_ref().and_then(|r| r.retry.as_ref());
        let mut tried: Vec<Rc<LocalEndpoint>> = Vec::new();
        let mut configured = retry.map_or(0, |r| r.attempts);
        if let Target::Balanced(balancer) = &self.plan.target {
            balancer.deposit();
        }
        loop {
            let endpoint = match &self.plan.target {
                Target::One(endpoint) => Some(endpoint.clone()),
                Target::Balanced(balancer) => balancer.pick(&worker, &tried),
            };
            let Some(endpoint) = endpoint else {
                let flag = if tried.is_empty() {
                    Flag::NoEndpoint
                } else {
                    Flag::ConnectFailure
                };
                return Err(Failed::new(flag, true));
            };
            let limit = rule.as_ref().and_then(|r| r.backend_timeout);
            let outcome = match limit {
                None => self.attempt(down, &endpoint).await,
                Some(limit) => within(limit, self.attempt(down, &endpoint)).await,
            };
            let codes = retry.map(|r| r.codes.as_slice()).unwrap_or_default();
            let again = match &outcome {
                Ok(answer) => configured > 0 && codes.contains(&answer.head.status),
                Err(failed) if failed.caller_gone => false,
                Err(failed) => {
                    let safe = failed.safe && tried.len() < SAFE_RETRIES;
                    safe || (configured > 0 && retry.is_some())
                }
            };
            let unsafe_retry = !matches!(&outcome, Err(failed) if failed.safe);
            if !again || !self.upload.can_restart() || !self.withdraw() {
                return outcome;
            }
            if unsafe_retry {
                configured -= 1;
            }
            drop(outcome);
            self.upload.restart();
            self.side
                .edge(Some(&self.plan), Some(&endpoint), self.protocol())
                .retry();
            tried.push(endpoint);
            if unsafe_retry
                && let Some(retry) = retry
                && !retry.backoff.is_zero()
            {
                Box::pin(tokio::time::sleep(retry.backoff)).await;
            }
        }
    }

    fn protocol(&self) -> &'static str {
        if self.grpc { "grpc" } else { "http" }
    }

    fn withdraw(&self) -> bool {
        match &self.plan.target {
            Target::Balanced(balancer) => balancer.withdraw(),
            // The application itself: only a connection that had gone stale.
            Target::One(_) => true,
        }
    }

    /// Sends the request to one endpoint and waits for the final answer's head;
    /// interim ones are passed on.
    async fn attempt(
        &mut self,
        down: &mut Leg,
        endpoint: &Rc<LocalEndpoint>,
    ) -> Result<Answer, Failed> {
        let shared = self.side.worker().shared.clone();
        let repeatable = self.head.is_idempotent() && self.framing == Framing::None;
        let in_flight = endpoint.begin();
        let link = match endpoint
            .acquire(&shared, self.head.version, repeatable)
            .await
        {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(%error, "no connection");
                return Err(Failed::new(Flag::ConnectFailure, true));
            }
        };
        let reused = matches!(&link, Link::H1 { reused: true, .. });
        let mut up = self.send_head(link)?;
        if self.head.wants_tunnel() {
            self.upload = Copy::flush_only();
        } else if self.framing == Framing::None && matches!(up, Leg::H2(_)) {
            self.upload = Copy::done();
        }
        let lost = |e: LegError| match e {
            LegError::Refused => Failed::new(Flag::UpstreamReset, true),
            // The server closed the idle connection at the same moment
            // (RFC 9112 section 9.3.1): nothing was answered.
            LegError::Lost => Failed::new(Flag::UpstreamReset, reused && repeatable),
            LegError::Malformed => Failed::new(Flag::UpstreamReset, false),
        };
        loop {
            let (head, framing) = self
                .wait_for_head(down, &mut up)
                .await
                .map_err(|e| match e {
                    Waiting::Caller => Failed {
                        flag: Flag::ClientGone,
                        safe: false,
                        caller_gone: true,
                    },
                    Waiting::Callee(e) => {
                        endpoint_trouble(endpoint, e);
                        lost(e)
                    }
                })?;
            if !head.is_interim() {
                in_flight.answered();
                return Ok(Answer {
                    head,
                    framing,
                    up,
                    endpoint: endpoint.clone(),
                    in_flight,
                });
            }
            down.send_response(&head, Framing::None, self.head.version, false);
            let flushed = poll_fn(|cx| down.poll_flush(cx)).await;
            flushed.map_err(|_| Failed {
                flag: Flag::ClientGone,
                safe: false,
                caller_gone: true,
            })?;
        }
    }

    fn send_head(&self, link: Link) -> Result<Leg, Failed> {
        match link {
            Link::H1 { mut message, .. } => {
                let framing = if self.head.wants_tunnel() {
                    Framing::None
                } else {
                    self.framing
                };
                message.start_writing(framing, |out| h1::put_request(out, &self.head, framing));
                Ok(Leg::H1(message))
            }
            Link::H2(connection) => {
                let end = self.framing == Framing::None && !self.head.wants_tunnel();
                match connection.open(&self.head, end) {
                    Ok(stream) => Ok(Leg::H2(stream)),
                    Err(OpenError::Closed | OpenError::Full) => {
                        Err(Failed::new(Flag::UpstreamReset, true))
                    }
                }
            }
        }
    }

    /// Uploads meanwhile: an answer may come before the request has ended.
    async fn wait_for_head(
        &mut self,
        down: &mut Leg,
        up: &mut Leg,
    ) -> Result<(ResponseHead, Framing), Waiting> {
        let method = self.head.method_bytes();
        let upload = &mut self.upload;
        poll_fn(|cx| {
            let mut write_error = None;
            if !upload.is_done() {
                match upload.poll(cx, down, up) {
                    Poll::Ready(Err(CopyError::Read(_))) => {
                        return Poll::Ready(Err(Waiting::Caller));
                    }
                    // An answer may say why it takes no more.
                    Poll::Ready(Err(CopyError::Write(e))) => write_error = Some(e),
                    _ => {}
                }
            } else if down.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Waiting::Caller));
            }
            match poll_response(cx, up, method) {
                Poll::Pending => match write_error {
                    Some(e) => Poll::Ready(Err(Waiting::Callee(e))),
                    None => Poll::Pending,
                },
                Poll::Ready(answer) => Poll::Ready(answer.map_err(Waiting::Callee)),
            }
        })
        .await
    }

    /// Passes the answer on, and what is left of the request.
    async fn relay(&mut self, down: &mut Leg, answer: Answer) -> End {
        let Answer {
            mut head,
            framing,
            mut up,
            endpoint,
            in_flight,
        } = answer;
        self.change_response(&mut head.fields);
        let tunnel = head.status == 101
            || (self.head.method_bytes() == b"CONNECT" && (200..300).contains(&head.status));
        let framing = self.response_framing(&head, framing, tunnel);
        let close = self.close || (framing == Framing::UntilClose && !tunnel);
        let head_framing = if tunnel { Framing::UntilClose } else { framing };
        down.send_response(&head, head_framing, self.head.version, close);
        let mut download = if tunnel {
            down.start_tunnel();
            up.start_tunnel();
            self.upload = Copy::once();
            Copy::once()
        } else if framing == Framing::None && matches!(down, Leg::H2(_)) {
            Copy::done()
        } else {
            Copy::once()
        };
        if tunnel {
            // The head goes out before any tunnelled byte is there.
            let _ = poll_fn(|cx| down.poll_flush(cx)).await;
        }
        let ended = self.copy_both(down, &mut up, &mut download, tunnel).await;
        drop(in_flight);
        let mut outcome = Outcome {
            status: head.status,
            grpc: download.grpc_status.or_else(|| grpc_status(&head.fields)),
            flag: Flag::None,
        };
        let mut next = if close || tunnel {
            Next::Close
        } else {
            Next::Continue
        };
        match ended {
            Ok(()) => self.keep(up, &endpoint, &head),
            Err(flag) => {
                outcome.flag = flag;
                next = Next::Close;
                up.abort();
                down.abort();
            }
        }
        if !self.upload.is_done() {
            next = Next::Close;
        }
        End {
            outcome,
            next,
            endpoint: Some(endpoint),
            sent: self.upload.bytes,
            received: download.bytes,
        }
    }

    fn change_response(&self, fields: &mut Fields) {
        if let Some(rule) = &self.plan.rule {
            rule.response_headers.apply(fields);
        }
        if let Some(backend) = self.plan.backend() {
            backend.response_headers.apply(fields);
        }
    }

    /// How the caller is told where the answer's body ends.
    fn response_framing(&self, head: &ResponseHead, framing: Framing, tunnel: bool) -> Framing {
        if tunnel {
            return Framing::UntilClose;
        }
        match framing {
            Framing::Chunked | Framing::UntilClose if self.head.version == Version::H10 => {
                Framing::UntilClose
            }
            Framing::UntilClose => Framing::Chunked,
            Framing::None
                if head.can_have_body(self.head.method_bytes())
                    && !head.fields.has(Known::ContentLength)
                    && self.head.version != Version::H2 =>
            {
                Framing::Length(0)
            }
            framing => framing,
        }
    }

    /// Moves both bodies until the answer is complete, or, in a tunnel, both
    /// sides have ended. A call that a new policy forbids ends here.
    async fn copy_both(
        &mut self,
        down: &mut Leg,
        up: &mut Leg,
        download: &mut Copy,
        tunnel: bool,
    ) -> Result<(), Flag> {
        let (side, head, upload) = (self.side, &self.head, &mut self.upload);
        let guard = RefCell::new(None);
        poll_fn(|cx| {
            let down_result = download.poll(cx, up, down);
            match down_result {
                Poll::Ready(Ok(())) if !tunnel || upload.is_done() => return Poll::Ready(Ok(())),
                Poll::Ready(Err(CopyError::Read(_))) => {
                    return Poll::Ready(Err(Flag::UpstreamReset));
                }
                Poll::Ready(Err(CopyError::Write(_))) => return Poll::Ready(Err(Flag::ClientGone)),
                _ => {}
            }
            if !upload.is_done() {
                match upload.poll(cx, down, up) {
                    Poll::Ready(Ok(())) if tunnel && download.is_done() => {
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Err(CopyError::Read(_))) => {
                        return Poll::Ready(Err(Flag::ClientGone));
                    }
                    Poll::Ready(Err(CopyError::Write(_))) if tunnel => {
                        return Poll::Ready(Err(Flag::UpstreamReset));
                    }
                    // A callee that answers may not want the rest.
                    _ => {}
                }
            } else if down.poll_gone(cx).is_ready() && !download.is_done() {
                return Poll::Ready(Err(Flag::ClientGone));
            }
            // Only what lasts is looked at when a policy changes.
            if let Side::Inbound(inbound) = side {
                let mut guard = guard.borrow_mut();
                let guard = guard.get_or_insert_with(|| {
                    let (inbound, head) = (inbound.clone(), Rc::clone(head));
                    let worker = inbound.worker.clone();
                    ActiveCalls::register(
                        &worker,
                        Box::new(move |config| inbound.may_go_on(config, Some(&head))),
                    )
                });
                if guard.must_end(cx.waker()) {
                    return Poll::Ready(Err(Flag::PolicyChanged));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Keeps the connection for the next request, if it can carry one.
    fn keep(&self, up: Leg, endpoint: &Rc<LocalEndpoint>, head: &ResponseHead) {
        if let Leg::H1(message) = up
            && self.upload.is_done()
            && head.status != 101
            && message.read_to_end()
            && !message.has_input()
            && !message.ends_with_connection()
            && h1::keeps_alive(&head.fields, head.version)
        {
            endpoint.give_back(message);
        }
    }
}

/// Who ended the wait for an answer.
enum Waiting {
    Caller,
    Callee(LegError),
}

/// An endpoint that loses requests is left out for a while; one that refuses
/// them in order is only going away.
fn endpoint_trouble(endpoint: &LocalEndpoint, error: LegError) {
    if error == LegError::Lost && endpoint.identity.is_some() {
        endpoint.failed();
    }
}

fn poll_response(
    cx: &mut std::task::Context<'_>,
    up: &mut Leg,
    method: &[u8],
) -> Poll<Result<(ResponseHead, Framing), LegError>> {
    match up {
        Leg::H1(message) => poll_h1_response(cx, message, method),
        Leg::H2(stream) => stream.poll_response(cx).map(|head| {
            let head = head?;
            let length = head.fields.known(Known::ContentLength).next();
            let length = length.and_then(|l| std::str::from_utf8(l).ok()?.parse().ok());
            let framing = match (stream.complete_body(), length) {
                (Some(0), _) => Framing::None,
                _ if !head.can_have_body(method) => Framing::None,
                (_, Some(length)) => Framing::Length(length),
                (_, None) => Framing::Chunked,
            };
            Ok((head, framing))
        }),
    }
}

fn poll_h1_response(
    cx: &mut std::task::Context<'_>,
    message: &mut Message,
    method: &[u8],
) -> Poll<Result<(ResponseHead, Framing), LegError>> {
    let answer = message.poll_head(cx, &mut |bytes| {
        let mut head = ResponseHead::default();
        let parsed = h1::parse_response(bytes, &mut head, method)?;
        Ok::<_, h1::HeadError>(parsed.map(|(length, framing)| (length, (head, framing))))
    });
    answer.map(|answer| {
        let (head, framing) = answer?.ok_or(LegError::Lost)?;
        if !head.is_interim() {
            message.start_reading(framing);
        }
        Ok((head, framing))
    })
}

/// A request that is being recorded.
struct Span {
    context: TraceParent,
    parent: [u8; 8],
    start: SystemTime,
}

impl Span {
    /// Continues the caller's trace, or starts one for its share of requests.
    /// The request goes on with this span as its parent.
    fn begin(side: &Side, head: &mut RequestHead) -> Option<Self> {
        let worker = side.worker();
        let mesh = worker.shared.mesh.load();
        mesh.otlp_endpoint.as_ref()?;
        let given = head
            .fields
            .known(Known::TraceParent)
            .next()
            .and_then(TraceParent::parse);
        let span_id = || (worker.random() | 1).to_be_bytes();
        let (context, parent) = match given {
            Some(context) if !context.sampled => return None,
            Some(context) => (
                TraceParent {
                    parent: span_id(),
                    ..context
                },
                context.parent,
            ),
            None => {
                let point = worker.random() as f64 / u64::MAX as f64;
                if point >= mesh.trace_sampling {
                    return None;
                }
                let trace = (u128::from(worker.random()) << 64) | u128::from(worker.random());
                let context = TraceParent {
                    trace: trace.to_be_bytes(),
                    parent: span_id(),
                    sampled: true,
                };
                (context, [0; 8])
            }
        };
        head.fields.set("traceparent", context.format().as_bytes());
        Some(Self {
            context,
            parent,
            start: SystemTime::now(),
        })
    }

    fn finish(
        self,
        side: &Side,
        head: &RequestHead,
        outcome: Outcome,
        took: Duration,
        edge: std::sync::Arc<crate::telemetry::EdgeKey>,
    ) {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let name = match head.is_grpc() {
            true => text(head.path_bytes().strip_prefix(b"/").unwrap_or_default()),
            // No path: names of spans are few.
            false => text(head.method_bytes()),
        };
        side.worker().shared.spans.send(FinishedSpan {
            context: self.context,
            parent: self.parent,
            start: self.start,
            took,
            name,
            outcome,
            edge: Some(edge),
        });
    }
}
