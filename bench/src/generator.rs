//! What runs in the pods: bulk bytes and connections. As many requests as are
//! answered come from h2load.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

const CHUNK: usize = 256 * 1024;
/// What is asked everywhere.
pub const REQUEST: &[u8] = b"GET /items/1 HTTP/1.1\r\nHost: server\r\nUser-Agent: bench\r\n\r\n";

/// Takes as many bytes on port 9000 as a sender says first, and answers with
/// their number. (Not every peer passes on a half-closed connection.)
pub fn sink() -> anyhow::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:9000").context("port 9000")?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            let expected = u64::from_be_bytes(length);
            let mut buffer = vec![0; CHUNK];
            let mut total = 0u64;
            while total < expected {
                match stream.read(&mut buffer)? {
                    0 => break,
                    n => total += n as u64,
                }
            }
            stream.write_all(&total.to_be_bytes())
        });
    }
    Ok(())
}

/// Sends bytes and checks that all of them arrived.
pub fn send(address: &str, bytes: u64) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.write_all(&bytes.to_be_bytes())?;
    let chunk = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(chunk.get(..n).unwrap_or_default())?;
        left -= n as u64;
    }
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    let arrived = u64::from_be_bytes(answer);
    ensure!(arrived == bytes, "{arrived} of {bytes} bytes arrived");
    Ok(())
}

/// Whether a whole answer has come: its body is as long as it says.
pub fn body_is_complete(answer: &[u8]) -> anyhow::Result<bool> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(false);
    };
    ensure!(head.starts_with("HTTP/1.1 200"), "answered {head}");
    let length = head
        .lines()
        .filter_map(|l| l.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .context("no content-length")?;
    Ok(body.len() >= length)
}

/// One request on a stream.
async fn request(stream: &mut tokio::net::TcpStream) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::with_capacity(1024);
    while !body_is_complete(&answer)? {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("the connection ended before the answer");
        }
    }
    Ok(())
}

/// Resolves once: what is measured are connections, not names.
pub fn resolve(address: &str) -> anyhow::Result<SocketAddr> {
    let mut addresses = address.to_socket_addrs()?;
    addresses
        .next()
        .with_context(|| format!("{address} has no address"))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// A request on each of `count` connections, `concurrency` at a time.
pub fn connect(address: &str, count: usize, concurrency: usize) -> anyhow::Result<()> {
    let address = resolve(address)?;
    let begun = Arc::new(AtomicUsize::new(0));
    runtime()?.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..concurrency {
            let begun = begun.clone();
            tasks.spawn(async move {
                while begun.fetch_add(1, Ordering::Relaxed) < count {
                    let mut stream = tokio::net::TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    request(&mut stream).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        Ok(())
    })
}

/// Opens connections, makes a request on each, says `open` and keeps them until
/// standard input ends.
pub fn hold(address: &str, count: usize) -> anyhow::Result<()> {
    let address = resolve(address)?;
    runtime()?
        .block_on(async {
            let mut open = Vec::with_capacity(count);
            for _ in 0..count {
                let connecting = tokio::net::TcpStream::connect(address);
                let mut stream = tokio::time::timeout(Duration::from_secs(5), connecting).await??;
                request(&mut stream).await?;
                open.push(stream);
            }
            println!("open");
            anyhow::Ok(open)
        })
        .map(|_open| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
        })
}
