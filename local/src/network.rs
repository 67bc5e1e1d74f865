//! The mesh's network: every pod has a link of its own to the engine's
//! namespace, which routes between them and leads services' addresses to
//! endpoints for pods that have no proxy, as kube-proxy does.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use weft_api::{EndpointSlice, LABEL_SERVICE_NAME, Object, Service};

/// Addresses of pods and services, as the proxies are told.
pub const MESH_CIDRS: &str = "10.244.0.0/16,10.96.0.0/16,fd00:10:244::/64,fd00:10:96::/64";
/// The engine's own address: the control plane and DNS are here.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The engine's end of every link.
const GATEWAY6: &str = "fe80::1";

/// Hands out addresses, each once until the range is used up.
#[derive(Default)]
pub struct Addresses {
    pods: u16,
    services: u16,
}

impl Addresses {
    /// A pod's, of both families.
    pub fn pod(&mut self) -> (Ipv4Addr, Ipv6Addr) {
        self.pods = self.pods.wrapping_add(1).max(10);
        let [a, b] = self.pods.to_be_bytes();
        (
            Ipv4Addr::new(10, 244, a, b),
            Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, self.pods),
        )
    }

    /// A service's, of both families.
    pub fn service(&mut self) -> (Ipv4Addr, Ipv6Addr) {
        self.services = self.services.wrapping_add(1).max(10);
        let [a, b] = self.services.to_be_bytes();
        (
            Ipv4Addr::new(10, 96, a, b),
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, self.services),
        )
    }
}

/// Runs `ip -batch`; stops at the first error.
pub fn ip_batch(commands: &str) -> anyhow::Result<()> {
    run("ip", &["-batch", "-"], commands)
}

fn run(program: &str, args: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} cannot be run: is it installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Sets the engine's namespace up: the calling thread is in it.
pub fn prepare_router() -> anyhow::Result<()> {
    ip_batch(&format!("link set lo up\naddr add {GATEWAY}/32 dev lo\n"))?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ] {
        // A kernel without IPv6 lacks some.
        let _ = std::fs::write(format!("/proc/sys/{key}"), value);
    }
    Ok(())
}

/// Gives a pod its link. `sandbox` is its supervisor's process.
pub fn connect_pod(link: &str, sandbox: u32, v4: Ipv4Addr, v6: Ipv6Addr) -> anyhow::Result<()> {
    ip_batch(&format!(
        "link add {link} type veth peer name eth0 netns {sandbox}\nlink set {link} up\nroute add {v4}/32 dev {link}\n"
    ))?;
    // Without IPv6 a pod has IPv4 alone.
    let _ = ip_batch(&format!(
        "addr add {GATEWAY6}/64 dev {link} nodad\nroute add {v6}/128 dev {link}\n"
    ));
    Ok(())
}

/// Inside the pod: its addresses and the way out.
pub fn configure_pod(addresses: &[IpAddr], gateway: IpAddr) -> anyhow::Result<()> {
    let v4 = addresses
        .iter()
        .find(|a| a.is_ipv4())
        .context("a pod needs an IPv4 address")?;
    ip_batch(&format!(
        "link set lo up\nlink set eth0 up\naddr add {v4}/32 dev eth0\nroute add {gateway}/32 dev eth0\nroute add default via {gateway} dev eth0 src {v4}\n"
    ))?;
    if let Some(v6) = addresses.iter().find(|a| a.is_ipv6()) {
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0");
        let _ = ip_batch(&format!(
            "addr add {v6}/128 dev eth0 nodad\nroute add default via {GATEWAY6} dev eth0 src {v6}\n"
        ));
    }
    Ok(())
}

/// Leads services' addresses to ready endpoints, at random.
pub fn lead_services(objects: &[Object]) -> anyhow::Result<()> {
    for (program, v6) in [("iptables-restore", false), ("ip6tables-restore", true)] {
        let mut text = "*nat\n:PREROUTING ACCEPT [0:0]\n:WEFT_SERVICES - [0:0]\n-A PREROUTING -p tcp -j WEFT_SERVICES\n".to_owned();
        for object in objects {
            if let Object::Service(service) = object {
                service_rules(service, objects, v6, &mut text);
            }
        }
        text.push_str("COMMIT\n");
        match run(program, &["--wait", "5"], &text) {
            Err(_) if v6 => {}
            result => result?,
        }
    }
    Ok(())
}

fn service_rules(service: &Service, objects: &[Object], v6: bool, text: &mut String) {
    for ip in service
        .cluster_ips()
        .into_iter()
        .filter(|ip| ip.contains(':') == v6)
    {
        for port in &service.spec.ports {
            let endpoints = endpoints(service, &port.name, objects, v6);
            for (i, endpoint) in endpoints.iter().enumerate() {
                let left = endpoints.len() - i;
                let chance = if left > 1 {
                    format!(
                        "-m statistic --mode random --probability {:.8} ",
                        1.0 / left as f64
                    )
                } else {
                    String::new()
                };
                text.push_str(&format!(
                    "-A WEFT_SERVICES -d {ip} -p tcp -m tcp --dport {} {chance}-j DNAT --to-destination {endpoint}\n",
                    port.port
                ));
            }
        }
    }
}

fn endpoints(service: &Service, port: &str, objects: &[Object], v6: bool) -> Vec<String> {
    let belongs = |slice: &&EndpointSlice| {
        slice.metadata.namespace == service.metadata.namespace
            && slice.metadata.labels.get(LABEL_SERVICE_NAME) == Some(&service.metadata.name)
            && (slice.address_type == "IPv6") == v6
    };
    let slices = objects.iter().filter_map(|o| match o {
        Object::EndpointSlice(slice) => Some(slice),
        _ => None,
    });
    slices
        .filter(belongs)
        .flat_map(|slice| {
            let port = slice.ports.iter().find(|p| p.name == port).map(|p| p.port);
            let ready = slice.endpoints.iter().filter(|e| e.conditions.ready);
            ready.filter_map(move |e| {
                let (ip, port) = (e.addresses.first()?, port?);
                Some(if v6 {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                })
            })
        })
        .collect()
}
