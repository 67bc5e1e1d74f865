//! What is written: medians of the rounds, and the ratios that are aimed at.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::load::{Measure, Memory, Sample};
use crate::peer::Peer;

/// Samples of all rounds.
pub struct Results {
    rounds: usize,
    seconds: u32,
    samples: BTreeMap<(Measure, Peer), Vec<Sample>>,
    memory: BTreeMap<Peer, Memory>,
}

/// A ratio that is aimed at: Weft's processor time by a peer's.
const AIMS: [(Measure, Peer, f64); 6] = [
    (Measure::Http1Closed, Peer::Haproxy, 0.85),
    (Measure::Http1Rate, Peer::Nginx, 0.85),
    (Measure::Http2Closed, Peer::Haproxy, 1.3),
    (Measure::Http2Closed, Peer::Envoy, 0.45),
    (Measure::Bulk, Peer::Haproxy, 0.55),
    (Measure::Connections, Peer::Haproxy, 0.95),
];

impl Results {
    /// No results yet.
    pub fn new(rounds: usize, seconds: u32) -> Self {
        Self {
            rounds,
            seconds,
            samples: BTreeMap::new(),
            memory: BTreeMap::new(),
        }
    }

    /// Adds one run.
    pub fn add(&mut self, peer: Peer, measure: Measure, sample: Sample) {
        self.samples
            .entry((measure, peer))
            .or_default()
            .push(sample);
    }

    /// Sets a peer's memory.
    pub fn memory(&mut self, peer: Peer, memory: Memory) {
        self.memory.insert(peer, memory);
    }

    fn median(&self, measure: Measure, peer: Peer, of: fn(&Sample) -> f64) -> Option<f64> {
        let samples = self.samples.get(&(measure, peer))?;
        median(samples.iter().map(of).collect())
    }

    /// The median over the rounds of Weft's processor time by a peer's.
    fn ratio(&self, measure: Measure, peer: Peer) -> Option<f64> {
        let own = self.samples.get(&(measure, Peer::Weft))?;
        let theirs = self.samples.get(&(measure, peer))?;
        median(
            own.iter()
                .zip(theirs)
                .map(|(a, b)| a.cpu_ms / b.cpu_ms)
                .collect(),
        )
    }

    /// Writes `result.json` and `result.md`, and prints the latter.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let json = serde_json::to_string_pretty(&self.json())?;
        std::fs::write(folder.join("result.json"), json)?;
        let text = self.markdown();
        std::fs::write(folder.join("result.md"), &text)?;
        print!("{text}");
        Ok(())
    }

    fn json(&self) -> Value {
        let measures: Vec<Value> = self
            .samples
            .iter()
            .map(|((measure, peer), samples)| {
                json!({
                    "measure": format!("{measure:?}"),
                    "peer": peer.name(),
                    "samples": samples.iter().map(|s| json!({
                        "rate": s.rate, "cpu_ms": s.cpu_ms, "p50_us": s.p50, "p99_us": s.p99,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        let memory: BTreeMap<_, _> = self
            .memory
            .iter()
            .map(|(peer, m)| {
                let kib = json!({
                    "connections": m.connections, "idle_kib": m.idle,
                    "held_kib": m.held, "closed_kib": m.closed,
                });
                (peer.name(), kib)
            })
            .collect();
        json!({
            "rounds": self.rounds,
            "seconds": self.seconds,
            "measures": measures,
            "memory": memory,
            "ratios": AIMS.iter().map(|(measure, peer, aim)| json!({
                "measure": format!("{measure:?}"), "peer": peer.name(),
                "ratio": self.ratio(*measure, *peer), "aim": aim,
            })).collect::<Vec<_>>(),
        })
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "Medians of {} rounds, {} s each; both proxies together; one thread for each proxy.\n",
            self.rounds, self.seconds
        );
        let titles = [
            (
                Measure::Http1Closed,
                "HTTP/1.1, 64 connections, closed loop",
                "requests/s",
                "CPU ms/request",
            ),
            (
                Measure::Http1Rate,
                "HTTP/1.1, 1,000 requests/s",
                "requests/s",
                "CPU ms/request",
            ),
            (
                Measure::Http2Closed,
                "HTTP/2, 8 connections × 8 streams, closed loop",
                "requests/s",
                "CPU ms/request",
            ),
            (
                Measure::Http2Rate,
                "HTTP/2, 1,000 requests/s",
                "requests/s",
                "CPU ms/request",
            ),
            (Measure::Bulk, "TCP, one connection", "GiB/s", "CPU ms/GiB"),
            (
                Measure::Connections,
                "New connections, a request each",
                "connections/s",
                "CPU ms/connection",
            ),
        ];
        for (measure, title, rate, cpu) in titles {
            if !self.samples.keys().any(|(m, _)| *m == measure) {
                continue;
            }
            self.table(&mut text, measure, title, rate, cpu);
        }
        self.memory_table(&mut text);
        let _ = writeln!(
            text,
            "\n| Weft's CPU by a peer's | ratio | aim | |\n|---|---|---|---|"
        );
        for (measure, peer, aim) in AIMS {
            if let Some(ratio) = self.ratio(measure, peer) {
                let met = if ratio <= aim { "reached" } else { "missed" };
                let _ = writeln!(
                    text,
                    "| {measure:?} / {} | {ratio:.2} | {aim:.2} | {met} |",
                    peer.name()
                );
            }
        }
        text
    }

    fn table(&self, text: &mut String, measure: Measure, title: &str, rate: &str, cpu: &str) {
        let of = |peer, field: fn(&Sample) -> f64| self.median(measure, peer, field);
        let timed = matches!(measure, Measure::Http1Rate | Measure::Http2Rate);
        let base = |field: fn(&Sample) -> f64| of(Peer::Direct, field).unwrap_or_default();
        let (base50, base99) = (base(|s| s.p50), base(|s| s.p99));
        let added = if timed {
            " added p50 µs | added p99 µs |"
        } else {
            ""
        };
        let line = if timed { "---|---|" } else { "" };
        let _ = writeln!(
            text,
            "\n**{title}**\n\n| | {rate} | {cpu} |{added}\n|---|---|---|{line}"
        );
        for peer in Peer::ALL {
            let Some(median) = of(peer, |s| s.rate) else {
                continue;
            };
            let cpu = of(peer, |s| s.cpu_ms).unwrap_or_default();
            let _ = write!(
                text,
                "| {} | {median:.*} | {cpu:.4} |",
                peer.name(),
                if median < 100.0 { 2 } else { 0 }
            );
            if timed {
                let p50 = of(peer, |s| s.p50).unwrap_or_default() - base50;
                let p99 = of(peer, |s| s.p99).unwrap_or_default() - base99;
                let _ = write!(text, " {p50:.0} | {p99:.0} |");
            }
            text.push('\n');
        }
    }

    fn memory_table(&self, text: &mut String) {
        if self.memory.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "\n**Memory: the client's proxy / the server's**\n\n\
             | | idle MiB | KiB for each of {} idle connections | MiB, 5 s after they closed |\n|---|---|---|---|",
            self.memory.values().next().map_or(0, |m| m.connections)
        );
        for (peer, m) in &self.memory {
            let mib = |kib: [u64; 2]| {
                let [client, server] = kib.map(|k| k as f64 / 1024.0);
                format!("{client:.1} / {server:.1}")
            };
            let each = |side: fn(&[u64; 2]) -> u64| {
                side(&m.held).saturating_sub(side(&m.idle)) as f64 / m.connections as f64
            };
            let (client, server) = (each(|k| k[0]), each(|k| k[1]));
            let _ = writeln!(
                text,
                "| {} | {} | {client:.1} / {server:.1} | {} |",
                peer.name(),
                mib(m.idle),
                mib(m.closed)
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied()?;
    match values.len() % 2 {
        0 => values.get(middle - 1).map(|lower| (lower + upper) / 2.0),
        _ => Some(upper),
    }
}
