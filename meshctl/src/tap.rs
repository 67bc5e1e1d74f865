//! `meshctl tap` and `meshctl top`: what happens now.

use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::cli::{Direction, Format, StatArgs, TapArgs, TopArgs};
use crate::cluster::{block_on, client, forward};
use crate::edges;
use crate::operator::Mesh;
use crate::output::{green, red};
use crate::proxy::connect_to_sidecar;

/// Prints requests as they end, until it is stopped.
pub fn tap(args: &TapArgs) -> anyhow::Result<ExitCode> {
    let path = path(args);
    let mut left = args.max;
    let mut show = |line: &str| {
        print_line(args.mesh.output, line);
        left = left.map(|n| n.saturating_sub(1));
        left != Some(0)
    };
    match Mesh::find(&args.mesh) {
        Mesh::Local(name) => local(args, &name, &path, &mut show)?,
        Mesh::Cluster(place) => {
            block_on(async { cluster(args, client(&place).await?, &path, &mut show).await })?
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn path(args: &TapArgs) -> String {
    let direction = args.direction.map(|d| match d {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    });
    let pairs = [
        ("direction", direction),
        ("method", args.method.as_deref()),
        ("path", args.path.as_deref()),
        ("status", args.status.as_deref()),
        ("peer", args.peer.as_deref()),
    ];
    let pairs = pairs
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", (*value)?)));
    format!("/tap?{}", pairs.collect::<Vec<_>>().join("&"))
}

fn local(
    args: &TapArgs,
    mesh: &str,
    path: &str,
    show: &mut dyn FnMut(&str) -> bool,
) -> anyhow::Result<()> {
    let mut stream = connect_to_sidecar(mesh, &args.namespace, &args.pod)?;
    // HTTP/1.0: the lines come as they are, without chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next().context("the sidecar's answer is empty")??;
    for line in lines.by_ref() {
        if line?.is_empty() {
            break;
        }
    }
    for line in lines {
        let line = line?;
        if !status.contains(" 200 ") {
            bail!("{line}");
        }
        if !show(&line) {
            break;
        }
    }
    Ok(())
}

async fn cluster(
    args: &TapArgs,
    client: kube::Client,
    path: &str,
    show: &mut dyn FnMut(&str) -> bool,
) -> anyhow::Result<()> {
    let pods = forward::find_pods(&client, &args.namespace, &args.pod).await?;
    let (sender, mut lines) = mpsc::channel(256);
    for pod in pods {
        let (client, namespace, path, sender) = (
            client.clone(),
            args.namespace.clone(),
            path.to_owned(),
            sender.clone(),
        );
        tokio::spawn(async move {
            if let Err(error) = follow(&client, &namespace, &pod, &path, &sender).await {
                eprintln!("{} {namespace}/{pod}: {error:#}", red("error:"));
            }
        });
    }
    drop(sender);
    while let Some(line) = lines.recv().await {
        if !show(&line) {
            break;
        }
    }
    Ok(())
}

/// One sidecar's lines.
async fn follow(
    client: &kube::Client,
    namespace: &str,
    pod: &str,
    path: &str,
    sender: &mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let mut response = forward::get_from_sidecar(client, namespace, pod, path).await?;
    let mut rest = String::new();
    while let Some(frame) = response.body_mut().frame().await {
        if let Ok(data) = frame?.into_data() {
            rest.push_str(&String::from_utf8_lossy(&data));
        }
        while let Some((line, after)) = rest.split_once('\n') {
            let line = line.to_owned();
            rest = after.to_owned();
            if !response.status().is_success() {
                bail!("{line}");
            }
            sender.send(line).await?;
        }
    }
    Ok(())
}

fn print_line(format: Format, line: &str) {
    let value: Value = serde_json::from_str(line).unwrap_or_default();
    match format {
        Format::Json => println!("{line}"),
        Format::Yaml => println!(
            "---\n{}",
            serde_saphyr::to_string(&value)
                .unwrap_or_default()
                .trim_end()
        ),
        Format::Table => println!("{}", describe(&value)),
    }
}

fn describe(request: &Value) -> String {
    let text = |field: &str| {
        request
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let name = |side: &str| match (text(&format!("{side}Namespace")), text(side)) {
        (_, "") => "(not meshed)".to_owned(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    let status = request
        .get("status")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    let coloured = if (200..400).contains(&status) {
        green(&status.to_string())
    } else {
        red(&status.to_string())
    };
    let grpc = request
        .get("grpcStatus")
        .and_then(Value::as_u64)
        .map_or_else(String::new, |s| format!(" grpc={s}"));
    let reason = match text("reason") {
        "" => String::new(),
        reason => format!(" {}", red(reason)),
    };
    let lock = if request.get("mtls") == Some(&Value::Bool(true)) {
        "mTLS"
    } else {
        "plaintext"
    };
    format!(
        "{:8} {} > {} {lock} {} {}{} {coloured}{grpc}{reason} {:.1} ms",
        text("direction"),
        name("source"),
        name("destination"),
        text("method"),
        text("host"),
        text("path"),
        request
            .get("milliseconds")
            .and_then(Value::as_f64)
            .unwrap_or_default(),
    )
}

/// `stat`, again and again.
pub fn top(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let stat = StatArgs {
        mesh: args.mesh.clone(),
        namespace: args.namespace.clone(),
        window: args.window,
    };
    let mut shown = 0;
    loop {
        // Clear the screen, then the cursor to its corner.
        print!("\x1b[2J\x1b[H");
        println!("the last {} seconds; Ctrl-C ends\n", args.window);
        edges::stat(&stat)?;
        std::io::stdout().flush()?;
        shown += 1;
        if args.count == Some(shown) {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
}
