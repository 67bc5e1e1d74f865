//! The measurements.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;

use crate::peer::Peer;
use crate::processes::{cpu, resident_kib};
use crate::topology::{Topology, program, within};

const BULK: u64 = 2 << 30;
const CONNECTIONS: u64 = 5_000;
const HELD: usize = 1_000;

/// One thing that is measured of every peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Measure {
    /// HTTP/1.1, 64 connections, each asks again when it is answered.
    Http1Closed,
    /// HTTP/1.1, 1,000 requests a second, a millisecond apart, over 20 connections.
    Http1Rate,
    /// HTTP/2, 8 connections with 8 requests each at a time.
    Http2Closed,
    /// HTTP/2, 1,000 requests a second, a millisecond apart, over 20 connections.
    Http2Rate,
    /// One connection that sends 2 GiB.
    Bulk,
    /// 5,000 connections with a request each, 16 at a time.
    Connections,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Http1Closed,
        Self::Http1Rate,
        Self::Http2Closed,
        Self::Http2Rate,
        Self::Bulk,
        Self::Connections,
    ];
}

/// What one run gave.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Requests, GiB or connections a second.
    pub rate: f64,
    /// Processor milliseconds of both proxies for each of them.
    pub cpu_ms: f64,
    /// Response time in microseconds, where it was recorded.
    pub p50: f64,
    /// As `p50`.
    pub p99: f64,
}

/// Memory of the proxies in KiB: the client's, the server's.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Before any load, after one request.
    pub idle: [u64; 2],
    /// With idle client connections.
    pub held: [u64; 2],
    /// Five seconds after they were closed.
    pub closed: [u64; 2],
    /// How many connections there were.
    pub connections: usize,
}

/// Waits until a peer answers in every way that it will be asked.
pub fn warm_up(topology: &Topology, peer: Peer) -> anyhow::Result<()> {
    let host = topology.host(peer)?;
    let url = format!("http://{host}:8080/items/1");
    let url2 = format!("http://{host}:8081/items/1");
    let ask = |args: &[&str]| {
        let mut command = vec!["curl", "-sS", "--fail-with-body", "-m", "2", "-D", "-"];
        command.extend(args);
        topology.in_client(peer, &command)
    };
    within(Duration::from_secs(10), || ask(&[&url]).is_ok());
    ask(&[&url])?;
    within(Duration::from_secs(10), || {
        ask(&["--http2-prior-knowledge", &url2]).is_ok()
    });
    ask(&["--http2-prior-knowledge", &url2])?;
    Ok(())
}

/// Runs one measurement.
pub fn run(
    topology: &Topology,
    peer: Peer,
    measure: Measure,
    seconds: u32,
) -> anyhow::Result<Sample> {
    let host = topology.host(peer)?;
    let proxies = topology.proxies(peer)?.concat();
    let duration = format!("{seconds}s");
    let url = match measure {
        Measure::Http1Closed => format!("http://{host}:8080/items/1"),
        _ => format!("http://{host}:8081/items/1"),
    };
    let h2load = |args: &[&str]| {
        let mut command = vec!["h2load"];
        command.extend(args);
        command.push(&url);
        topology.in_client(peer, &command)
    };
    let generator = program("weft-bench")?.display().to_string();
    let (bulk, connections) = (BULK.to_string(), CONNECTIONS.to_string());
    let before = cpu(&proxies);
    let start = Instant::now();
    let output = match measure {
        Measure::Http1Closed => h2load(&["--h1", "-D", &duration, "-c", "64"])?,
        Measure::Http1Rate => {
            let to = format!("{host}:8080");
            topology.in_client(peer, &[&generator, "rate", &to, &seconds.to_string()])?
        }
        Measure::Http2Closed => h2load(&["-D", &duration, "-c", "8", "-m", "8"])?,
        Measure::Http2Rate => {
            let (to, seconds) = (format!("{host}:8081"), seconds.to_string());
            topology.in_client(peer, &[&generator, "rate", &to, &seconds, "--http2"])?
        }
        Measure::Bulk => {
            let to = format!("{host}:9000");
            topology.in_client(peer, &[&generator, "send", &to, &bulk])?
        }
        Measure::Connections => {
            let to = format!("{host}:8080");
            topology.in_client(peer, &[&generator, "connect", &to, &connections, "16"])?
        }
    };
    let took = start.elapsed().as_secs_f64();
    let used = cpu(&proxies).saturating_sub(before).as_secs_f64() * 1000.0;
    let (mut p50, mut p99) = (0.0, 0.0);
    let (rate, count) = match measure {
        Measure::Bulk => (2.0 / took, 2.0),
        Measure::Connections => (CONNECTIONS as f64 / took, CONNECTIONS as f64),
        Measure::Http1Rate | Measure::Http2Rate => {
            let times = String::from_utf8_lossy(&output.stdout).into_owned();
            (p50, p99) = percentiles(&times);
            let count = times.lines().count() as f64;
            (count / f64::from(seconds), count)
        }
        Measure::Http1Closed | Measure::Http2Closed => {
            requests(&String::from_utf8_lossy(&output.stdout))?
        }
    };
    Ok(Sample {
        rate,
        cpu_ms: used / count,
        p50,
        p99,
    })
}

/// Requests a second and how many succeeded, as h2load says it. All must.
fn requests(output: &str) -> anyhow::Result<(f64, f64)> {
    let line = |start: &str| output.lines().find(|l| l.starts_with(start));
    let rate = line("finished in")
        .and_then(|l| l.split(',').find(|part| part.contains("req/s")))
        .and_then(|part| part.trim().trim_end_matches(" req/s").parse().ok())
        .with_context(|| format!("h2load said: {output}"))?;
    let counts = line("requests:").context("h2load counted nothing")?;
    let count = |what: &str| {
        counts
            .split([',', ':'])
            .find(|part| part.contains(what))
            .and_then(|part| part.split_whitespace().next()?.parse::<f64>().ok())
            .unwrap_or_default()
    };
    // An HTTP/1 answer without a reason phrase, as HAProxy makes of HTTP/2, is
    // done but not counted by its status: what failed is looked at.
    let statuses = line("status codes:").unwrap_or_default();
    let done = count("done");
    ensure!(
        done > 0.0
            && count("errored") + count("timeout") == 0.0
            && statuses.contains(" 0 3xx, 0 4xx, 0 5xx"),
        "requests failed: {output}"
    );
    Ok((rate, done))
}

fn percentiles(times: &str) -> (f64, f64) {
    let mut times: Vec<u64> = times.lines().filter_map(|l| l.parse().ok()).collect();
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times.get(index).copied().unwrap_or_default() as f64
    };
    (at(0.5), at(0.99))
}

/// Memory of a peer's proxies, idle and with idle connections.
pub fn memory(topology: &Topology, peer: Peer) -> anyhow::Result<Memory> {
    let proxies = topology.proxies(peer)?;
    let now = || proxies.each_ref().map(|pids| resident_kib(pids));
    let idle = now();
    let generator = program("weft-bench")?.display().to_string();
    let to = format!("{}:8080", topology.host(peer)?);
    let mut holding = topology
        .client_command(peer, &[&generator, "hold", &to, &HELD.to_string()])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    if let Some(output) = holding.stdout.take() {
        BufReader::new(output).read_line(&mut said)?;
    }
    ensure!(said.trim() == "open", "the connections were not all opened");
    std::thread::sleep(Duration::from_secs(2));
    let held = now();
    drop(holding.stdin.take());
    holding.wait()?;
    std::thread::sleep(Duration::from_secs(5));
    Ok(Memory {
        idle,
        held,
        closed: now(),
        connections: HELD,
    })
}
