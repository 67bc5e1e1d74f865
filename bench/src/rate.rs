//! Requests at a fixed rate: 20 connections take turns, a millisecond apart. A
//! request's time counts from when it was due, however late it could be sent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::generator::{REQUEST, body_is_complete, resolve};

const CONNECTIONS: u32 = 20;
const APART: Duration = Duration::from_millis(1);

/// Runs for some seconds and prints what each request took.
pub fn run(address: &str, seconds: u32, http2: bool) -> anyhow::Result<()> {
    let address = resolve(address)?;
    let start = Instant::now() + Duration::from_millis(100);
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|turn| {
            let first = start + APART * turn;
            let count = seconds * 1000 / CONNECTIONS;
            std::thread::spawn(move || connection(address, first, count, http2))
        })
        .collect();
    let mut out = String::new();
    for thread in threads {
        let times = thread.join().ok().context("a connection's thread died")??;
        for time in times {
            out.push_str(&format!("{}\n", time.as_micros()));
        }
    }
    print!("{out}");
    Ok(())
}

fn connection(
    address: SocketAddr,
    first: Instant,
    count: u32,
    http2: bool,
) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    if http2 {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])?;
    }
    let mut input = Vec::new();
    let mut times = Vec::with_capacity(count as usize);
    for number in 0..count {
        let due = first + APART * CONNECTIONS * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if http2 {
            ask_http2(&mut stream, &mut input, number * 2 + 1)?;
        } else {
            ask_http1(&mut stream, &mut input)?;
        }
        times.push(due.elapsed());
    }
    Ok(times)
}

fn ask_http1(stream: &mut TcpStream, input: &mut Vec<u8>) -> anyhow::Result<()> {
    stream.write_all(REQUEST)?;
    input.clear();
    while !body_is_complete(input)? {
        read_more(stream, input)?;
    }
    Ok(())
}

fn read_more(stream: &mut TcpStream, input: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    let n = stream.read(&mut buffer)?;
    ensure!(n > 0, "the connection ended before the answer");
    input.extend_from_slice(buffer.get(..n).unwrap_or_default());
    Ok(())
}

/// A request in a HEADERS frame of static and literal fields (RFC 9113 section
/// 6.2), and frames until the one that ends its stream.
fn ask_http2(stream: &mut TcpStream, input: &mut Vec<u8>, id: u32) -> anyhow::Result<()> {
    // :method GET, :scheme http, :path, :authority, user-agent.
    let mut block = vec![0x82, 0x86];
    for (name, value) in [(4, "/items/1"), (1, "server"), (58, "bench")] {
        match name {
            0..15 => block.push(name),
            _ => block.extend([15, name - 15]),
        }
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    let mut frame = vec![0, 0, block.len() as u8, 1, 0x05];
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(&block);
    stream.write_all(&frame)?;
    loop {
        while let Some((&[a, b, c, kind, flags, s1, s2, s3, s4], _)) =
            input.split_first_chunk::<9>()
        {
            let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
            if input.len() < end {
                break;
            }
            let payload = input.get(9..end).unwrap_or_default();
            if kind == 1 && payload.first() != Some(&0x88) {
                bail!("not answered with 200");
            }
            if kind == 4 && flags == 0 {
                stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0])?;
            }
            ensure!(kind != 3 && kind != 7, "the server ended the stream");
            input.drain(..end);
            if matches!(kind, 0 | 1) && flags & 1 != 0 && u32::from_be_bytes([s1, s2, s3, s4]) == id
            {
                return Ok(());
            }
        }
        read_more(stream, input)?;
    }
}
