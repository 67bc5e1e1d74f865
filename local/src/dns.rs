//! The engine's name server: services for pods without a proxy, and all other
//! names from the machine's own resolver, through a socket that was opened
//! before the engine left the machine's network.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;

use crate::network::GATEWAY;

const TTL: u32 = 1;
const SUFFIX: &str = ".svc.cluster.local.";
/// Questions waiting for the machine's resolver.
const MAX_WAITING: usize = 1024;

/// Addresses by `SERVICE.NAMESPACE`.
pub type Names = Arc<Mutex<HashMap<String, Vec<IpAddr>>>>;

/// A socket to the machine's resolver; `None` where there is none.
pub fn machine_resolver() -> Option<StdSocket> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    let servers = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"));
    for server in servers.filter_map(|ip| ip.trim().parse::<IpAddr>().ok()) {
        let any: IpAddr = match server {
            IpAddr::V4(_) => IpAddr::from([0, 0, 0, 0]),
            IpAddr::V6(_) => IpAddr::from([0u16; 8]),
        };
        let connected = StdSocket::bind((any, 0)).and_then(|s| s.connect((server, 53)).map(|()| s));
        if let Ok(socket) = connected {
            return Some(socket);
        }
    }
    None
}

/// Serves until the engine ends.
pub async fn serve(names: Names, upstream: Option<StdSocket>) -> io::Result<()> {
    let socket = UdpSocket::bind((GATEWAY, 53)).await?;
    let upstream = match upstream {
        Some(std) => {
            std.set_nonblocking(true)?;
            Some(UdpSocket::from_std(std)?)
        }
        None => None,
    };
    let mut waiting: HashMap<u16, (SocketAddr, [u8; 2])> = HashMap::new();
    let mut next_id: u16 = rand::random();
    let (mut question, mut answer) = (vec![0; 4096], vec![0; 4096]);
    loop {
        tokio::select! {
            asked = socket.recv_from(&mut question) => {
                let Ok((n, from)) = asked else { continue };
                let bytes = question.get_mut(..n).unwrap_or_default();
                if let Some(reply) = answer_locally(&names, bytes, upstream.is_none()) {
                    let _ = socket.send_to(&reply, from).await;
                } else if let Some(upstream) = &upstream
                    && let Some(id) = bytes.first_chunk_mut::<2>()
                {
                    if waiting.len() >= MAX_WAITING {
                        waiting.clear();
                    }
                    next_id = next_id.wrapping_add(1);
                    waiting.insert(next_id, (from, *id));
                    *id = next_id.to_be_bytes();
                    let _ = upstream.send(bytes).await;
                }
            }
            Ok(n) = receive(upstream.as_ref(), &mut answer) => {
                let bytes = answer.get_mut(..n).unwrap_or_default();
                let Some(id) = bytes.first_chunk_mut::<2>() else { continue };
                if let Some((from, original)) = waiting.remove(&u16::from_be_bytes(*id)) {
                    *id = original;
                    let _ = socket.send_to(bytes, from).await;
                }
            }
        }
    }
}

async fn receive(upstream: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<usize> {
    match upstream {
        Some(upstream) => upstream.recv(buffer).await,
        None => std::future::pending().await,
    }
}

/// `None`: somebody else is to be asked.
fn answer_locally(names: &Names, bytes: &[u8], alone: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(bytes).ok()?;
    let query = question.queries.first()?;
    if question.metadata.message_type != MessageType::Query {
        return None;
    }
    let name = query.name().to_ascii().to_ascii_lowercase();
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_available = true;
    reply.queries = vec![query.clone()];
    let Some(host) = name.strip_suffix(SUFFIX) else {
        if !alone {
            return None;
        }
        reply.metadata.response_code = ResponseCode::ServFail;
        return reply.to_vec().ok();
    };
    let known = names
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(host)
        .cloned();
    if known.is_none() {
        reply.metadata.response_code = ResponseCode::NXDomain;
    }
    for ip in known.into_iter().flatten() {
        let data = match (ip, query.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => RData::A(A(ip)),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
            _ => continue,
        };
        reply
            .answers
            .push(Record::from_rdata(query.name().clone(), TTL, data));
    }
    reply.to_vec().ok()
}
