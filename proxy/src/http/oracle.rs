//! The own HTTP against libraries that others wrote: hyper for HTTP/1, h2 for
//! HTTP/2. Same bytes in, same meaning out, or a refusal.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};

use super::fields::Fields;
use super::h1::{self, Message};
use super::h2::{BodyEvent, Connection, Dialect, Role, Stream, drive};
use super::head::{RequestHead, ResponseHead, Version};
use crate::transport::Io;

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .unwrap();
    runtime.block_on(async {
        let bound = Duration::from_secs(20);
        tokio::time::timeout(bound, future).await.unwrap()
    })
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// A request as a server understood it: method, target, `x-` fields, body.
type Understood = (String, String, Vec<(String, Vec<u8>)>, Vec<u8>);

/// hyper keeps no order but among fields of one name.
fn by_name(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields
}

async fn as_hyper_reads(wire: &[u8]) -> Vec<Understood> {
    let (mut client, server) = pair().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = {
        let seen = seen.clone();
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let seen = seen.clone();
            async move {
                let (head, body) = request.into_parts();
                if let Ok(body) = body.collect().await {
                    let fields = head.headers.iter();
                    let fields = fields.filter(|(n, _)| n.as_str().starts_with("x-"));
                    seen.lock().unwrap().push((
                        head.method.to_string(),
                        head.uri.path_and_query().unwrap().to_string(),
                        by_name(fields.map(|(n, v)| (n.to_string(), v.as_bytes().to_vec()))),
                        body.to_bytes().to_vec(),
                    ));
                }
                Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::new())))
            }
        })
    };
    let serve = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(hyper_util::rt::TokioIo::new(server), service);
    let ask = async {
        let _ = client.write_all(wire).await;
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut Vec::new()).await;
    };
    let _ = tokio::join!(serve, ask);
    std::mem::take(&mut *seen.lock().unwrap())
}

async fn as_we_read(wire: &[u8]) -> Vec<Understood> {
    let (mut client, server) = pair().await;
    let mut message = Message::new(Io::plain(server));
    let read = async {
        let mut seen = Vec::new();
        let mut parse = |bytes: &[u8]| {
            let mut head = RequestHead::default();
            let parsed = h1::parse_request(bytes, &mut head)?;
            Ok::<_, h1::HeadError>(parsed.map(|(length, framing)| (length, (head, framing))))
        };
        while let Ok(Some((head, framing))) = poll_fn(|cx| message.poll_head(cx, &mut parse)).await
        {
            message.start_reading(framing);
            let mut body = Vec::new();
            let complete = loop {
                let mut sink = |bytes: &[u8]| body.extend_from_slice(bytes);
                match poll_fn(|cx| message.poll_data(cx, usize::MAX, &mut sink)).await {
                    Ok(BodyEvent::Data) => {}
                    Ok(BodyEvent::End(_)) => break true,
                    Err(_) => break false,
                }
            };
            if !complete {
                break;
            }
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let mut target = text(head.path_bytes());
            if let Some(query) = head.query_bytes() {
                target = format!("{target}?{}", text(query));
            }
            let fields = head.fields.iter().map(|f| (text(f.name), f.value.to_vec()));
            let fields = fields.map(|(n, v)| (n.to_ascii_lowercase(), v));
            seen.push((
                text(head.method_bytes()),
                target,
                by_name(fields.filter(|(n, _)| n.starts_with("x-"))),
                body,
            ));
            if !h1::keeps_alive(&head.fields, head.version) {
                break;
            }
        }
        drop(message);
        seen
    };
    let ask = async {
        let _ = client.write_all(wire).await;
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut Vec::new()).await;
    };
    tokio::join!(read, ask).0
}

/// Lines of a head, valid ones and such as attacks are made of.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "x-[a-z]{1,4}: [ -~]{0,12}\r\n",
        2 => "[Cc]ontent-[Ll]ength: [0-9]{1,2}\r\n",
        1 => "Content-Length: [-+]?[0-9]{0,2}[, ]{0,2}[0-9]?\r\n",
        2 => "Transfer-Encoding: (chunked|chunked, chunked|identity|gzip, chunked|xchunked|chunked;x)\r\n",
        1 => "Transfer-Encoding ?:[ \t]?[cC]hunked\r\n",
        1 => "Connection: (close|keep-alive|upgrade|x-a)\r\n",
        1 => "x-[a-z] ?: a\r?\n",
        1 => "[ \t]folded\r\n",
        1 => Just("Expect: 100-continue\r\n".to_owned()),
    ]
}

fn body() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-z]{0,20}",
        "(3\r\nabc\r\n|1;x=y\r\nq\r\n|0A\r\n0123456789\r\n){0,3}0\r\n(x-t: 1\r\n)?\r\n",
        "[0-9a-fA-Fx]{0,3}[\r\n ;]{1,3}[a-z]{0,6}\r?\n0\r\n\r\n",
    ]
}

fn message() -> impl Strategy<Value = String> {
    (
        "(GET|POST|PUT|HEAD|DELETE|x)",
        "/[a-z0-9]{0,6}(\\?[a-z=&%]{0,5})?",
        "HTTP/1\\.[01]",
        proptest::collection::vec(line(), 0..4),
        body(),
    )
        .prop_map(|(method, target, version, lines, body)| {
            format!(
                "{method} {target} {version}\r\nHost: a\r\n{}\r\n{body}",
                lines.concat()
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    /// Whatever we take for a request, hyper takes for the same one: nothing can
    /// be hidden from a server behind the proxy.
    #[test]
    fn what_we_accept_hyper_understands_alike(messages in proptest::collection::vec(message(), 1..4)) {
        let wire = messages.concat();
        let (ours, theirs) = run(async {
            (as_we_read(wire.as_bytes()).await, as_hyper_reads(wire.as_bytes()).await)
        });
        prop_assert!(
            ours.len() <= theirs.len() && ours[..] == theirs[..ours.len()],
            "{wire:?}\n ours   {ours:?}\n theirs {theirs:?}"
        );
    }
}

#[test]
fn ordinary_requests_are_accepted_as_hyper_accepts_them() {
    let wire = b"POST /a?b HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nContent-Length: 3\r\n\r\nabc\
        PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n\
        GET /d HTTP/1.1\r\nHost: a\r\n\r\n";
    let (ours, theirs) = run(async { (as_we_read(wire).await, as_hyper_reads(wire).await) });
    assert_eq!(ours.len(), 3);
    assert_eq!(ours, theirs);
}

/// What is sent over HTTP/2 and is to come back.
#[derive(Debug, Clone)]
struct Call {
    fields: Vec<(String, String)>,
    chunks: Vec<usize>,
    trailers: Option<String>,
}

fn call() -> impl Strategy<Value = Call> {
    (
        proptest::collection::vec(("x-[a-z0-9-]{1,20}", "[!-~]([ -~]{0,60}[!-~])?"), 0..8),
        proptest::collection::vec(prop_oneof![0usize..40, 1000usize..90_000], 0..5),
        proptest::option::of("[a-z0-9]{1,20}"),
    )
        .prop_map(|(fields, chunks, trailers)| Call {
            fields,
            chunks,
            trailers,
        })
}

impl Call {
    fn body(&self) -> Vec<u8> {
        let bytes = self.chunks.iter().enumerate();
        bytes
            .flat_map(|(i, n)| std::iter::repeat_n(i as u8, *n))
            .collect()
    }

    fn sorted(&self) -> Vec<(String, String)> {
        let mut fields = self.fields.clone();
        fields.sort();
        fields
    }
}

async fn send(stream: &Stream, call: &Call) {
    for (i, n) in call.chunks.iter().enumerate() {
        let chunk = vec![i as u8; *n];
        let mut left = chunk.as_slice();
        while !left.is_empty() {
            let room = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap();
            let (now, later) = left.split_at(room.min(left.len()));
            stream.send_data(now);
            left = later;
        }
    }
    let trailers = call.trailers.as_ref().map(|value| {
        let mut fields = Fields::default();
        fields.push(b"x-trailer", value.as_bytes());
        fields
    });
    stream.send_end(trailers.as_ref());
}

async fn receive(stream: &Stream) -> (Vec<u8>, Option<String>) {
    let mut body = Vec::new();
    loop {
        let mut sink = |bytes: &[u8]| body.extend_from_slice(bytes);
        let event = poll_fn(|cx| stream.poll_data(cx, 10_000, &mut sink)).await;
        if let BodyEvent::End(trailers) = event.unwrap() {
            let value = trailers.and_then(|t| {
                let value = t.named("x-trailer").next()?;
                Some(String::from_utf8(value.to_vec()).unwrap())
            });
            return (body, value);
        }
    }
}

fn own_fields(fields: &Fields) -> Vec<(String, String)> {
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    let fields = fields.iter().map(|f| (text(f.name), text(f.value)));
    let mut fields: Vec<_> = fields.filter(|(n, _)| n.starts_with("x-")).collect();
    fields.sort();
    fields
}

fn their_fields(fields: &http::HeaderMap) -> Vec<(String, String)> {
    let text = |v: &http::HeaderValue| v.to_str().unwrap().to_owned();
    let fields = fields.iter().map(|(n, v)| (n.to_string(), text(v)));
    let mut fields: Vec<_> = fields.filter(|(n, _)| n.starts_with("x-")).collect();
    fields.sort();
    fields
}

async fn their_body(body: &mut h2::RecvStream) -> (Vec<u8>, Option<String>) {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap();
    let value = trailers.map(|t| t["x-trailer"].to_str().unwrap().to_owned());
    (bytes, value)
}

async fn they_send(stream: &mut h2::SendStream<Bytes>, call: &Call) {
    for (i, n) in call.chunks.iter().enumerate() {
        stream.send_data(vec![i as u8; *n].into(), false).unwrap();
    }
    match &call.trailers {
        Some(value) => {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-trailer", value.parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        }
        None => stream.send_data(Bytes::new(), true).unwrap(),
    }
}

/// Answers with what was asked.
async fn echo(stream: Stream, head: RequestHead) {
    let (body, trailer) = receive(&stream).await;
    let mut response = ResponseHead::new(200, Version::H2);
    for (name, value) in own_fields(&head.fields) {
        response.fields.push(name.as_bytes(), value.as_bytes());
    }
    stream.send_response(&response, false);
    let mut left = body.as_slice();
    while !left.is_empty() {
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap();
        let (now, later) = left.split_at(room.min(left.len()));
        stream.send_data(now);
        left = later;
    }
    let trailers = trailer.map(|value| {
        let mut fields = Fields::default();
        fields.push(b"x-trailer", value.as_bytes());
        fields
    });
    stream.send_end(trailers.as_ref());
}

/// Serves a connection, each request by [`echo`].
fn serve_echo(io: TcpStream) -> Rc<Connection> {
    let connection = Connection::new(Role::Server, Dialect::Standard);
    let driven = connection.clone();
    tokio::task::spawn_local(async move {
        drive(driven, Io::plain(io), Vec::new(), |stream, head| {
            tokio::task::spawn_local(echo(stream, head));
        })
        .await
    });
    connection
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_client_of_h2_gets_back_what_it_sent(calls in proptest::collection::vec(call(), 1..8)) {
        run(async {
            let (client, server) = pair().await;
            serve_echo(server);
            let (client, connection) = h2::client::handshake(client).await.unwrap();
            tokio::task::spawn_local(connection);
            let mut client = client.ready().await.unwrap();
            let asked = calls.iter().map(|call| {
                let mut request = http::Request::post("http://a/echo");
                for (name, value) in &call.fields {
                    request = request.header(name, value);
                }
                client.send_request(request.body(()).unwrap(), false).unwrap()
            });
            let asked: Vec<_> = asked.collect();
            let each = asked.into_iter().zip(&calls).map(|((response, mut body), call)| async move {
                they_send(&mut body, call).await;
                let (head, mut body) = response.await.unwrap().into_parts();
                assert_eq!(head.status, 200);
                assert_eq!(their_fields(&head.headers), call.sorted());
                assert_eq!(their_body(&mut body).await, (call.body(), call.trailers.clone()));
            });
            futures_util::future::join_all(each).await;
        });
    }

    #[test]
    fn a_server_of_h2_gets_what_we_send_and_we_its_answer(calls in proptest::collection::vec(call(), 1..8)) {
        run(async {
            let (client, server) = pair().await;
            tokio::task::spawn_local(async move {
                let mut server = h2::server::handshake(server).await.unwrap();
                while let Some(Ok((request, mut respond))) = server.accept().await {
                    tokio::task::spawn_local(async move {
                        let (head, mut body) = request.into_parts();
                        let (bytes, trailer) = their_body(&mut body).await;
                        let mut response = http::Response::builder();
                        for (name, value) in their_fields(&head.headers) {
                            response = response.header(name, value);
                        }
                        let response = response.body(()).unwrap();
                        let mut stream = respond.send_response(response, false).unwrap();
                        stream.send_data(bytes.into(), trailer.is_none()).unwrap();
                        if let Some(value) = trailer {
                            let mut trailers = http::HeaderMap::new();
                            trailers.insert("x-trailer", value.parse().unwrap());
                            stream.send_trailers(trailers).unwrap();
                        }
                    });
                }
            });
            let connection = Connection::new(Role::Client, Dialect::Standard);
            let driven = drive(connection.clone(), Io::plain(client), Vec::new(), |_, _| {});
            tokio::task::spawn_local(driven);
            let each = calls.iter().map(|call| {
                let connection: Rc<Connection> = connection.clone();
                async move {
                    let mut head = RequestHead::default();
                    head.version = Version::H2;
                    let method = head.fields.keep(b"POST");
                    head.set_method(method);
                    let target = head.fields.keep(b"/echo");
                    head.set_target(target).unwrap();
                    let authority = head.fields.keep(b"a");
                    head.set_authority(authority);
                    for (name, value) in &call.fields {
                        head.fields.push(name.as_bytes(), value.as_bytes());
                    }
                    let stream = connection.open(&head, false).unwrap();
                    let answered = async {
                        let response = poll_fn(|cx| stream.poll_response(cx)).await.unwrap();
                        (response, receive(&stream).await)
                    };
                    let ((), (response, got)) = tokio::join!(send(&stream, call), answered);
                    assert_eq!(response.status, 200);
                    assert_eq!(own_fields(&response.fields), call.sorted());
                    assert_eq!(got, (call.body(), call.trailers.clone()));
                }
            });
            futures_util::future::join_all(each).await;
        });
    }
}

#[test]
fn callers_are_asked_to_leave_with_the_answer_after_which_they_wait_for_none() {
    run(async {
        let (client, server) = pair().await;
        let connection = serve_echo(server);
        let (client, driven) = h2::client::handshake(client).await.unwrap();
        let ended = tokio::task::spawn_local(driven);
        let mut client = client.ready().await.unwrap();
        connection.announce_shutdown_with_answer();
        let request = || http::Request::post("http://a/echo").body(()).unwrap();
        let (late, mut upload) = client.send_request(request(), false).unwrap();
        let (answer, _) = client.send_request(request(), true).unwrap();
        their_body(answer.await.unwrap().body_mut()).await;
        let mut client = client.ready().await.unwrap();
        upload.send_data(Bytes::new(), true).unwrap();
        // No request that follows the last answer comes too late to be held back.
        their_body(late.await.unwrap().body_mut()).await;
        assert!(poll_fn(|cx| client.poll_ready(cx)).await.is_err());
        ended.await.unwrap().unwrap();
    });
}
