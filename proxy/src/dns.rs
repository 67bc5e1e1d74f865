//! Answers DNS questions: names of the mesh from what the control plane says,
//! all others by asking the machine's name servers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::settings::Settings;
use crate::shared::Shared;

/// Seconds that an answer of the mesh may be kept: addresses of services stay.
const TTL: u32 = 5;
/// Questions answered at once.
const CONCURRENT: usize = 256;
const UPSTREAM: Duration = Duration::from_secs(3);
const PORT: u16 = 15053;

struct Resolver {
    shared: Arc<Shared>,
    /// `.svc.DOMAIN.`, in lower case.
    suffix: String,
    servers: Vec<IpAddr>,
    slots: Arc<Semaphore>,
}

/// Serves DNS until the process ends.
pub async fn serve(shared: Arc<Shared>, settings: Arc<Settings>) -> io::Result<()> {
    let servers = match settings.name_servers.as_slice() {
        [] => system_servers(),
        given => given.to_vec(),
    };
    let resolver = Arc::new(Resolver {
        shared,
        suffix: format!(".svc.{}.", settings.cluster_domain.to_ascii_lowercase()),
        servers,
        slots: Arc::new(Semaphore::new(CONCURRENT)),
    });
    // The addresses that the pod's own questions are led to; an answer must come
    // from the same one.
    for ip in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        let address = SocketAddr::new(ip, PORT);
        match (
            UdpSocket::bind(address).await,
            TcpListener::bind(address).await,
        ) {
            (Ok(udp), Ok(tcp)) => {
                tokio::spawn(serve_udp(resolver.clone(), Arc::new(udp)));
                tokio::spawn(serve_tcp(resolver.clone(), tcp));
            }
            // A pod without IPv6 asks no questions over it.
            _ if ip.is_ipv6() => {}
            (udp, tcp) => {
                let error = udp.err().or(tcp.err());
                return Err(error.unwrap_or_else(|| io::Error::other("DNS cannot be served")));
            }
        }
    }
    Ok(())
}

fn system_servers() -> Vec<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter_map(|ip| ip.trim().parse().ok())
        .collect()
}

async fn serve_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let question = buffer.get(..n).unwrap_or_default().to_vec();
        let Ok(slot) = resolver.slots.clone().try_acquire_owned() else {
            continue;
        };
        let (resolver, socket) = (resolver.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = resolver.answer(&question, false).await {
                // The asker asks again if this is lost.
                let _ = socket.send_to(&answer, from).await;
            }
            drop(slot);
        });
    }
}

async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Ok(slot) = resolver.slots.clone().try_acquire_owned() else {
            continue;
        };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            let bound = Duration::from_secs(10);
            let _ = tokio::time::timeout(bound, resolver.converse(stream)).await;
            drop(slot);
        });
    }
}

impl Resolver {
    /// Questions over TCP, each after its length (RFC 1035 section 4.2.2).
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = stream.read_u16().await?;
            let mut question = vec![0; length.into()];
            stream.read_exact(&mut question).await?;
            let Some(answer) = self.answer(&question, true).await else {
                return Ok(());
            };
            stream
                .write_u16(answer.len().try_into().unwrap_or(u16::MAX))
                .await?;
            stream.write_all(&answer).await?;
        }
    }

    async fn answer(&self, bytes: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(bytes).ok()?;
        if question.metadata.message_type != MessageType::Query {
            return None;
        }
        let query = question.queries.first()?;
        let name = query.name().to_ascii().to_ascii_lowercase();
        let Some(host) = name.strip_suffix(&self.suffix) else {
            return match self.forward(bytes, tcp).await {
                Some(answer) => Some(answer),
                None => reply(&question, ResponseCode::ServFail, Vec::new()),
            };
        };
        let slot = self.shared.name(host);
        self.shared.touch(&slot);
        let Some(known) = slot.wait().await else {
            return reply(&question, ResponseCode::ServFail, Vec::new());
        };
        if known.addresses.is_empty() {
            return reply(&question, ResponseCode::NXDomain, Vec::new());
        }
        let addresses = known
            .addresses
            .iter()
            .filter_map(|a| a.parse::<IpAddr>().ok());
        let data = addresses.filter_map(|ip| match (ip, query.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(ip))),
            (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(ip))),
            _ => None,
        });
        let records = data
            .map(|d| Record::from_rdata(query.name().clone(), TTL, d))
            .collect();
        reply(&question, ResponseCode::NoError, records)
    }

    /// Asks the machine's name servers in turn.
    async fn forward(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        for server in &self.servers {
            let address = SocketAddr::new(*server, 53);
            let asked = async {
                if tcp {
                    ask_tcp(address, question).await
                } else {
                    ask_udp(address, question).await
                }
            };
            if let Ok(Ok(answer)) = tokio::time::timeout(UPSTREAM, asked).await {
                return Some(answer);
            }
        }
        None
    }
}

fn reply(question: &Message, code: ResponseCode, answers: Vec<Record>) -> Option<Vec<u8>> {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.response_code = code;
    message.metadata.authoritative = true;
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.queries = question.queries.iter().take(1).cloned().collect();
    message.answers = answers;
    message.to_vec().ok()
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await?;
        // Anything but the answer to this question is not looked at.
        if buffer.get(..2) == question.get(..2) {
            buffer.truncate(n);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream
        .write_u16(question.len().try_into().unwrap_or(u16::MAX))
        .await?;
    stream.write_all(question).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
