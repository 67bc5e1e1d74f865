//! `make demo`: starts the shop as a mesh, shows it at work, cleans up.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

const MESH: &str = "demo";
/// How long traffic flows before the summary.
const SHOW: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let keep = std::env::var("KEEP").is_ok_and(|v| v == "1");
    let shown = demo();
    if keep && shown.is_ok() {
        println!(
            "\nThe mesh stays up: meshctl local ps --name {MESH}; end it with meshctl local down --name {MESH}"
        );
    } else {
        let _ = meshctl(&["local", "down", "--name", MESH]);
    }
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn meshctl(args: &[&str]) -> anyhow::Result<String> {
    let program = std::env::current_exe()?.with_file_name("meshctl");
    let output = Command::new(program)
        .args(args)
        .output()
        .context("meshctl is built with `cargo build --release`")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `exec` passes the command's exit code on.
    if !output.status.success() && !args.contains(&"exec") && !args.contains(&"explain") {
        bail!(
            "meshctl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(text)
}

fn edges(window: &str) -> anyhow::Result<Vec<Value>> {
    let text = meshctl(&["edges", "--name", MESH, "--window", window, "-o", "json"])?;
    Ok(serde_json::from_str(&text)?)
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn demo() -> anyhow::Result<()> {
    let manifests = PathBuf::from("examples/manifests");
    if !manifests.exists() {
        bail!(
            "run it from the repository: {} is missing",
            manifests.display()
        );
    }
    let _ = meshctl(&["local", "down", "--name", MESH]);
    let start = Instant::now();
    println!("starting the shop: 10 pods, each with a sidecar, in network namespaces of their own");
    meshctl(&[
        "local",
        "up",
        "--name",
        MESH,
        "-f",
        "examples/manifests",
        "--otlp-endpoint",
        "http://traces.shop.svc.cluster.local:4317",
        "--trace-sampling",
        "0.2",
    ])?;
    println!(
        "everything is ready after {:.1} s; traffic flows",
        start.elapsed().as_secs_f64()
    );
    let shown = Instant::now();
    while shown.elapsed() < SHOW {
        std::thread::sleep(Duration::from_secs(4));
        let edges = edges("4")?;
        let sum = |field: &str| edges.iter().filter_map(|e| e[field].as_f64()).sum::<f64>();
        println!(
            "  {:>2} s: {} edges, {:.0} requests/s, {} retries, {} denied",
            shown.elapsed().as_secs(),
            edges.len(),
            sum("requestsPerSecond"),
            sum("retries"),
            sum("denied"),
        );
    }
    summary()
}

fn summary() -> anyhow::Result<()> {
    heading("Who calls whom, and the identities that the TLS sessions proved");
    print!("{}", meshctl(&["edges", "--name", MESH, "--window", "15"])?);
    canary()?;
    denied()?;
    retries()?;
    trace()?;
    heading("Where to look next");
    println!(
        "  make demo KEEP=1, then meshctl edges --name {MESH}, meshctl authz explain --help, docs/"
    );
    Ok(())
}

fn canary() -> anyhow::Result<()> {
    heading("Canary: 10 % of the catalog's requests were asked to go to v2");
    let edges = edges("0")?;
    let of = |name: &str| -> f64 {
        let to = edges
            .iter()
            .filter(|e| e["destination"] == name && e["protocol"] == "http");
        to.filter_map(|e| e["requests"].as_f64()).sum()
    };
    let (v1, v2) = (of("catalog-v1"), of("catalog-v2"));
    println!(
        "  v1 {v1} requests, v2 {v2}: {:.1} % seen",
        100.0 * v2 / (v1 + v2).max(1.0)
    );
    Ok(())
}

fn denied() -> anyhow::Result<()> {
    heading("Denied: the load generator asks the catalog, which only the frontend may");
    let exec = [
        "local",
        "exec",
        "--name",
        MESH,
        "-n",
        "shop",
        "deploy/load",
        "--",
    ];
    let curl = ["curl", "-s", "-m", "5", "http://catalog/items"];
    print!("  {}", meshctl(&[&exec[..], &curl[..]].concat())?);
    let explain = [
        "authz",
        "explain",
        "--name",
        MESH,
        "-n",
        "shop",
        "--from",
        "deploy/load",
        "--to",
        "catalog:8080",
        "--method",
        "GET",
        "--path",
        "/items",
    ];
    for line in meshctl(&explain)?.lines() {
        println!("  {line}");
    }
    Ok(())
}

fn retries() -> anyhow::Result<()> {
    heading("Retries: one instance of the recommendations answers half of its requests 503");
    let edges = edges("15")?;
    let number = |e: &Value, field: &str| e[field].as_f64().unwrap_or_default();
    let retries: f64 = edges.iter().map(|e| number(e, "retries")).sum();
    let frontend = edges.iter().filter(|e| e["destination"] == "frontend");
    let worst = frontend
        .map(|e| number(e, "successRate"))
        .fold(1.0, f64::min);
    println!(
        "  {retries} requests were sent again in 15 s; the visitors saw {:.2} % success",
        worst * 100.0
    );
    Ok(())
}

fn trace() -> anyhow::Result<()> {
    heading("One trace across all hops");
    let log = meshctl(&[
        "local",
        "logs",
        "--name",
        MESH,
        "-n",
        "shop",
        "deploy/traces",
    ])?;
    let last = log
        .rfind("TRACE ")
        .context("no trace arrived at the collector")?;
    for line in log
        .get(last..)
        .unwrap_or_default()
        .lines()
        .take_while(|l| *l != "END")
    {
        println!("  {line}");
    }
    Ok(())
}
