//! `make bench`: Weft beside other proxies, in one run, over the same redirected
//! topology. Also holds the small generators that the pods run.

mod generator;
mod load;
mod peer;
mod processes;
mod rate;
mod report;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::load::Measure;
use crate::peer::Peer;
use crate::report::Results;
use crate::topology::Topology;

/// Measures Weft beside other proxies.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// Rounds; within each, every peer is measured once in everything
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement of requests
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Only these ways of joining the pods
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Only these measurements
    #[arg(long, value_enum, value_delimiter = ',')]
    measures: Vec<Measure>,
    /// Leave the memory out
    #[arg(long)]
    no_memory: bool,
    /// Where the results go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Subcommand)]
enum Part {
    /// Takes bytes on port 9000 until the sender ends, and says how many
    Sink,
    /// Sends bytes to a sink
    Send {
        /// Address of the sink
        address: String,
        /// How many
        bytes: u64,
    },
    /// Makes a request on each of many connections, a few at a time
    Connect {
        /// Address of the server
        address: String,
        /// How many connections
        count: usize,
        /// How many at a time
        concurrency: usize,
    },
    /// Makes 1,000 requests a second, evenly, and prints the time of each in
    /// microseconds
    Rate {
        /// Address of the server
        address: String,
        /// For how long
        seconds: u32,
        /// Speak HTTP/2
        #[arg(long)]
        http2: bool,
    },
    /// Makes a request on each of many connections and keeps them open
    Hold {
        /// Address of the server
        address: String,
        /// How many connections
        count: usize,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.part {
        Some(Part::Sink) => generator::sink(),
        Some(Part::Send { address, bytes }) => generator::send(address, *bytes),
        Some(Part::Connect {
            address,
            count,
            concurrency,
        }) => generator::connect(address, *count, *concurrency),
        Some(Part::Rate {
            address,
            seconds,
            http2,
        }) => rate::run(address, *seconds, *http2),
        Some(Part::Hold { address, count }) => generator::hold(address, *count),
        None => bench(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> anyhow::Result<()> {
    let peers = chosen(&args.peers, &Peer::ALL);
    let measures = chosen(&args.measures, &Measure::ALL);
    eprintln!("starting {} ways of joining two pods", peers.len());
    let topology = Topology::start(&peers)?;
    let mut results = Results::new(args.rounds, args.seconds);
    for peer in &peers {
        load::warm_up(&topology, *peer)
            .with_context(|| format!("{peer:?} does not answer: {}", topology.said(*peer)))?;
    }
    if !args.no_memory {
        for peer in peers.iter().filter(|p| **p != Peer::Direct) {
            eprintln!("memory: {peer:?}");
            results.memory(*peer, load::memory(&topology, *peer)?);
        }
    }
    for round in 0..args.rounds {
        for measure in &measures {
            for turn in 0..peers.len() {
                // Another order in each round.
                let Some(peer) = peers.get((turn + round) % peers.len()) else {
                    continue;
                };
                eprint!(
                    "\rround {} of {}: {measure:?}, {peer:?}                    ",
                    round + 1,
                    args.rounds
                );
                let sample = load::run(&topology, *peer, *measure, args.seconds)
                    .with_context(|| format!("{measure:?} of {peer:?}"))?;
                results.add(*peer, *measure, sample);
            }
        }
    }
    eprintln!();
    results.write(&args.out)
}

fn chosen<T: Copy>(asked: &[T], all: &[T]) -> Vec<T> {
    let from = if asked.is_empty() { all } else { asked };
    from.to_vec()
}
