//! Two pods for each peer, in one local mesh, and the proxies of those peers
//! that the mesh does not start itself.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::peer::{Peer, configuration};
use crate::processes::{PROXY_UID, proxies};

const MESH: &str = "bench";
/// Ports of the application, and where a peer's proxy takes each.
const PORTS: [(u16, u16); 3] = [(8080, 15001), (8081, 15002), (9000, 15003)];

/// The pods of one peer.
pub struct Pair {
    client: Pod,
    server: Pod,
}

struct Pod {
    name: String,
    address: String,
    /// A process in its namespaces.
    process: i32,
}

/// Everything that runs; ended when it is dropped.
pub struct Topology {
    pairs: BTreeMap<Peer, Pair>,
    started: Vec<Child>,
    /// Files that the proxies and generators read and write.
    pub folder: tempfile::TempDir,
}

impl Topology {
    /// Starts the pods, the proxies and the rules that lead into them.
    pub fn start(peers: &[Peer]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), mode)?;
        write_certificates(folder.path())?;
        let mut topology = Self {
            pairs: BTreeMap::new(),
            started: Vec::new(),
            folder,
        };
        topology.start_pods(peers)?;
        for peer in peers {
            topology.prepare(*peer)?;
        }
        Ok(topology)
    }

    fn start_pods(&mut self, peers: &[Peer]) -> anyhow::Result<()> {
        let folder = self.folder.path();
        let mut manifests = read("mesh.yaml")?;
        for peer in peers {
            let name = peer.name();
            let inject = match peer {
                Peer::Weft => "enabled",
                _ => "disabled",
            };
            let upstream = configuration("upstream.conf", folder, "")?.replace("NAME", name);
            let own = folder.join(name);
            std::fs::create_dir(&own)?;
            std::fs::write(own.join("upstream.conf"), upstream)?;
            let pods = read("pods.yaml")?
                .replace("NAME", name)
                .replace("INJECT", inject)
                .replace("PROGRAM", &program("weft-bench")?.display().to_string())
                .replace("FOLDER", &own.display().to_string());
            manifests.push_str(&pods);
        }
        let _ = meshctl(&["local", "down", "--name", MESH])?.output();
        let mut up = meshctl(&["local", "up", "--name", MESH, "-f", "-"])?
            .stdin(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = up.stdin.take() {
            input.write_all(manifests.as_bytes())?;
        }
        ensure!(up.wait()?.success(), "the pods do not start");
        let listed = meshctl(&["local", "ps", "--name", MESH, "-o", "json"])?.output()?;
        let listed: Vec<Value> = serde_json::from_slice(&listed.stdout)?;
        for peer in peers {
            let pair = Pair {
                client: pod(&listed, &format!("{}-client", peer.name()))?,
                server: pod(&listed, &format!("{}-server", peer.name()))?,
            };
            self.pairs.insert(*peer, pair);
        }
        Ok(())
    }

    /// Sets the congestion control, which namespaces may inherit differently,
    /// and starts a peer's own proxies.
    fn prepare(&mut self, peer: Peer) -> anyhow::Result<()> {
        let Some(pair) = self.pairs.get(&peer) else {
            return Ok(());
        };
        for side in [&pair.client, &pair.server] {
            let reno = ["sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno"];
            succeeded(enter(side, &reno).output()?)?;
        }
        for (side, what, chain) in [
            (&pair.server, "server", "PREROUTING"),
            (&pair.client, "client", "OUTPUT"),
        ] {
            let text = match peer {
                Peer::Direct | Peer::Weft => break,
                _ => configuration(
                    &format!("{}-{what}.cfg", peer.name()),
                    self.folder.path(),
                    &pair.server.address,
                )?,
            };
            let file = self.folder.path().join(format!("{}-{what}", peer.name()));
            std::fs::write(&file, text)?;
            redirect(side, chain)?;
            let Some(command) = peer.command(&file) else {
                break;
            };
            let uid = PROXY_UID.to_string();
            let mut as_proxy = vec!["setpriv", "--reuid", &uid, "--regid", &uid];
            as_proxy.extend(["--clear-groups", "--pdeathsig", "TERM"]);
            as_proxy.extend(command.iter().map(String::as_str));
            let log = std::fs::File::create(file.with_extension("log"))?;
            let child = enter(side, &as_proxy)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            self.started.push(child);
        }
        Ok(())
    }

    /// Runs a command in a peer's client pod, as the application's user.
    pub fn in_client(&self, peer: Peer, command: &[&str]) -> anyhow::Result<Output> {
        let output = self.client_command(peer, command)?.output()?;
        succeeded(output)
    }

    /// A command in a peer's client pod, to be started.
    pub fn client_command(&self, peer: Peer, command: &[&str]) -> anyhow::Result<Command> {
        let pod = &self.pair(peer)?.client.name;
        let mut all = vec!["local", "exec", "--name", MESH, "-n", "bench", pod, "--"];
        all.extend(command);
        meshctl(&all)
    }

    /// What a peer's proxies have said.
    pub fn said(&self, peer: Peer) -> String {
        ["client", "server"]
            .map(|side| {
                let log = format!("{}-{side}.log", peer.name());
                std::fs::read_to_string(self.folder.path().join(log)).unwrap_or_default()
            })
            .concat()
    }

    /// What a client calls: the Service where there is a mesh, else the pod.
    pub fn host(&self, peer: Peer) -> anyhow::Result<&str> {
        Ok(match peer {
            Peer::Weft => "server",
            _ => &self.pair(peer)?.server.address,
        })
    }

    /// Processes of the two proxies: the client's, the server's.
    pub fn proxies(&self, peer: Peer) -> anyhow::Result<[Vec<i32>; 2]> {
        let pair = self.pair(peer)?;
        Ok([proxies(pair.client.process)?, proxies(pair.server.process)?])
    }

    fn pair(&self, peer: Peer) -> anyhow::Result<&Pair> {
        self.pairs.get(&peer).context("this peer was not started")
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for child in &self.started {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
        }
        for child in &mut self.started {
            let _ = child.wait();
        }
        if let Ok(mut down) = meshctl(&["local", "down", "--name", MESH]) {
            let _ = down.output();
        }
    }
}

fn read(name: &str) -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// A program of this build.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

fn meshctl(args: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(program("meshctl")?);
    command.args(args);
    Ok(command)
}

fn succeeded(output: Output) -> anyhow::Result<Output> {
    if !output.status.success() {
        bail!(
            "{}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

fn pod(listed: &[Value], name: &str) -> anyhow::Result<Pod> {
    let found = listed.iter().find(|p| p["pod"] == name);
    let found = found.with_context(|| format!("no pod {name}"))?;
    let process = found["containers"][0]["pid"].as_i64();
    Ok(Pod {
        name: name.to_owned(),
        address: found["ip"].as_str().context("no address")?.to_owned(),
        process: i32::try_from(process.context("no process")?)?,
    })
}

fn enter(pod: &Pod, command: &[&str]) -> Command {
    let mut entered = Command::new("nsenter");
    entered.arg(format!("--net=/proc/{}/ns/net", pod.process));
    entered.args(command);
    entered
}

/// The same redirection as the mesh's, to one port of the proxy for each port
/// of the application: peers need no original address then.
fn redirect(pod: &Pod, chain: &str) -> anyhow::Result<()> {
    let uid = PROXY_UID.to_string();
    for (port, to) in PORTS {
        let (port, to) = (port.to_string(), to.to_string());
        let mut rule = vec!["iptables", "-w", "-t", "nat", "-A", chain, "-p", "tcp"];
        rule.extend(["--dport", &port]);
        if chain == "OUTPUT" {
            rule.extend(["-m", "owner", "!", "--uid-owner", &uid]);
        }
        rule.extend(["-j", "REDIRECT", "--to-ports", &to]);
        succeeded(enter(pod, &rule).output()?)?;
    }
    Ok(())
}

/// A root and one certificate for both proxies of every peer.
fn write_certificates(folder: &Path) -> anyhow::Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let root_key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "bench");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key)?;
    let issuer = Issuer::from_params(&params, root_key);
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec!["peer.bench".to_owned()])?.signed_by(&key, &issuer)?;
    std::fs::write(folder.join("ca.pem"), root.pem())?;
    std::fs::write(folder.join("peer.pem"), leaf.pem())?;
    std::fs::write(folder.join("peer.key"), key.serialize_pem())?;
    std::fs::write(folder.join("peer.both"), leaf.pem() + &key.serialize_pem())?;
    Ok(())
}

/// Waits for a bounded time until something holds.
pub fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + limit;
    while !holds() {
        if std::time::Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    true
}
