//! What a pod's annotations say of its sidecar.

use serde_json::{Map, Value};

use crate::InjectError;

/// Every annotation that is understood, and what it says.
pub const KNOWN_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "weft.dev/inject",
        "`enabled` or `disabled`, whatever the namespace says",
    ),
    (
        "weft.dev/exclude-inbound-ports",
        "ports whose callers reach the application directly: 9100,9101",
    ),
    (
        "weft.dev/exclude-outbound-ports",
        "ports that the application calls directly: 25,587",
    ),
    (
        "weft.dev/exclude-outbound-cidrs",
        "addresses that the application calls directly: 192.0.2.0/24",
    ),
    (
        "weft.dev/log",
        "what the sidecar logs: error, warn, info, debug",
    ),
    ("weft.dev/workers", "data threads of the sidecar, 1 to 64"),
    (
        "weft.dev/proxy-cpu-request",
        "processor that the sidecar asks for: 10m",
    ),
    (
        "weft.dev/proxy-cpu-limit",
        "processor that the sidecar may use: 500m",
    ),
    (
        "weft.dev/proxy-memory-request",
        "memory that the sidecar asks for: 16Mi",
    ),
    (
        "weft.dev/proxy-memory-limit",
        "memory that the sidecar may use: 128Mi",
    ),
    (
        "weft.dev/termination-delay-seconds",
        "how long containers without a preStop hook go on serving once their pod is to end, 0 to 60: 5",
    ),
    (
        "weft.dev/original",
        "written by the injector: what `meshctl uninject` puts back",
    ),
];

/// What they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotations {
    /// `None`: the namespace decides.
    pub inject: Option<bool>,
    /// Ports, as `weft-init` reads them.
    pub exclude_inbound_ports: Option<String>,
    /// Ports, as `weft-init` reads them.
    pub exclude_outbound_ports: Option<String>,
    /// Ranges, as `weft-init` reads them.
    pub exclude_outbound_cidrs: Option<String>,
    /// What the sidecar logs.
    pub log: Option<String>,
    /// Its data threads.
    pub workers: Option<u64>,
    /// `requests` and `limits` that were given.
    pub resources: Vec<(&'static str, &'static str, String)>,
    /// Before containers without a hook of their own are stopped.
    pub termination_delay_seconds: u64,
}

const TERMINATION_DELAY: u64 = 5;

impl Annotations {
    /// Reads a pod's. One of ours that is not known is refused: what it was
    /// meant to say would not happen.
    pub fn read(metadata: Option<&Map<String, Value>>) -> Result<Self, InjectError> {
        let all = metadata
            .and_then(|m| m.get("annotations"))
            .and_then(Value::as_object);
        let known = |key: &str| KNOWN_ANNOTATIONS.iter().any(|(k, _)| *k == key);
        if let Some(key) = all
            .into_iter()
            .flat_map(Map::keys)
            .find(|k| k.starts_with("weft.dev/") && !known(k))
        {
            let names: Vec<&str> = KNOWN_ANNOTATIONS.iter().map(|(k, _)| *k).collect();
            return Err(InjectError(format!(
                "the annotation {key} is not known; known are {}",
                names.join(", ")
            )));
        }
        let get = |name: &str| {
            let key = format!("weft.dev/{name}");
            all.and_then(|a| a.get(&key))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let bad = |name: &str, value: &str, wanted: &str| {
            InjectError(format!(
                "the annotation weft.dev/{name} is {value:?}: it must be {wanted}"
            ))
        };
        let checked = |name: &'static str, fine: fn(&str) -> bool, wanted: &str| match get(name) {
            Some(value) if !value.split(',').all(fine) => Err(bad(name, &value, wanted)),
            value => Ok(value.filter(|v| !v.is_empty())),
        };
        let number = |name: &'static str, from: u64, to: u64| match get(name) {
            None => Ok(None),
            Some(value) => match value.parse() {
                Ok(n) if (from..=to).contains(&n) => Ok(Some(n)),
                _ => Err(bad(name, &value, &format!("a number from {from} to {to}"))),
            },
        };
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|p| p > 0);
        let is_range = |range: &str| {
            let (ip, bits) = range.split_once('/').unwrap_or((range, "0"));
            ip.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok_and(|b| b <= 128)
        };
        let mut resources = Vec::new();
        for (name, group, field) in [
            ("proxy-cpu-request", "requests", "cpu"),
            ("proxy-memory-request", "requests", "memory"),
            ("proxy-cpu-limit", "limits", "cpu"),
            ("proxy-memory-limit", "limits", "memory"),
        ] {
            let is_quantity = |q: &str| {
                q.starts_with(|c: char| c.is_ascii_digit())
                    && q.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
            };
            if let Some(value) = checked(name, is_quantity, "a quantity, like 100m or 64Mi")? {
                resources.push((group, field, value));
            }
        }
        Ok(Self {
            inject: match get("inject").as_deref() {
                None => None,
                Some("enabled") => Some(true),
                Some("disabled") => Some(false),
                Some(other) => return Err(bad("inject", other, "enabled or disabled")),
            },
            exclude_inbound_ports: checked("exclude-inbound-ports", is_port, "ports, like 25,587")?,
            exclude_outbound_ports: checked(
                "exclude-outbound-ports",
                is_port,
                "ports, like 25,587",
            )?,
            exclude_outbound_cidrs: checked(
                "exclude-outbound-cidrs",
                is_range,
                "address ranges, like 192.0.2.0/24",
            )?,
            log: checked(
                "log",
                |l| ["error", "warn", "info", "debug", "trace"].contains(&l),
                "error, warn, info or debug",
            )?,
            workers: number("workers", 1, 64)?,
            resources,
            termination_delay_seconds: number("termination-delay-seconds", 0, 60)?
                .unwrap_or(TERMINATION_DELAY),
        })
    }
}
