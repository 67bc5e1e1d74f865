//! The ways of joining two pods that are measured.

use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;

/// A way of joining two pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Peer {
    /// No proxy, no encryption.
    Direct,
    /// Weft's sidecars, with policy, routes and metrics.
    Weft,
    /// A pair of Envoy.
    Envoy,
    /// A pair of HAProxy.
    Haproxy,
    /// A pair of nginx.
    Nginx,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Direct,
        Self::Weft,
        Self::Envoy,
        Self::Haproxy,
        Self::Nginx,
    ];

    /// In names of pods, files and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Weft => "weft",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// The command of one of the two proxies, with its configuration; `None` if
    /// there is none to start.
    pub fn command(self, configuration: &Path) -> Option<Vec<String>> {
        let file = configuration.display().to_string();
        let command: &[&str] = match self {
            Self::Direct | Self::Weft => return None,
            Self::Envoy => &[
                "/var/cache/weft/envoy-1.40.0/envoy",
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "error",
                "--config-yaml",
            ],
            Self::Haproxy => &["haproxy", "-db", "-f"],
            Self::Nginx => &["nginx", "-c"],
        };
        let mut command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
        command.push(match self {
            Self::Envoy => std::fs::read_to_string(configuration).unwrap_or_default(),
            _ => file,
        });
        Some(command)
    }
}

/// A configuration of `peers/`, with its places filled in.
pub fn configuration(name: &str, folder: &Path, server: &str) -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("peers")
        .join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // The cheaper of the two ways for each, measured: HTTP/2 between the pair.
    let between = if name.starts_with("haproxy") {
        " alpn h2"
    } else {
        "http2_protocol_options: {max_concurrent_streams: 512}"
    };
    Ok(text
        .replace("FOLDER", &folder.display().to_string())
        .replace("SERVER", server)
        .replace("BETWEEN", between))
}
