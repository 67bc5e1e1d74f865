//! Commands and their flags.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Operates a Weft mesh.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage; `check` exits with 1 if
/// anything is wrong, `authz explain` with 3 if the call would be denied,
/// `local exec` with the command's own code.
#[derive(Parser)]
#[command(name = "meshctl", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// A mesh on this machine, without Kubernetes
    #[command(subcommand)]
    Local(LocalCommand),
    /// Installs the mesh in a Kubernetes cluster and waits until it works
    Install(InstallArgs),
    /// Brings an installed mesh up to date and waits until it works
    Upgrade(InstallArgs),
    /// Takes the mesh out of a cluster
    Uninstall(UninstallArgs),
    /// Prints manifests with a sidecar in each of their pods
    Inject(InjectArgs),
    /// Prints manifests without their sidecars
    Uninject(InjectArgs),
    /// Traffic of each workload: rate, success, latency
    Stat(StatArgs),
    /// Who calls whom, and the identities that were proved
    Edges(StatArgs),
    /// Requests of a workload as they end
    Tap(TapArgs),
    /// Traffic of each workload, as it changes
    Top(TopArgs),
    /// What a sidecar runs with
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Looks for what is wrong, or soon will be
    Check(MeshArgs),
    /// Looks for mistakes in manifests, or in a cluster
    Analyze(AnalyzeArgs),
    /// The certificate authority
    #[command(subcommand)]
    Ca(CaCommand),
    /// Authorization
    #[command(subcommand)]
    Authz(AuthzCommand),
    /// Versions of this program, the control plane and the sidecars
    Version(MeshArgs),
    /// Prints a completion script for a shell
    Completion { shell: Shell },
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Yaml,
}

/// A mesh of this machine.
#[derive(Args, Clone)]
pub struct LocalArgs {
    /// Which mesh of this machine
    #[arg(long, default_value = "weft", value_name = "MESH", value_parser = mesh_name)]
    pub name: String,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

/// A Kubernetes cluster.
#[derive(Args, Clone, Default)]
pub struct ClusterArgs {
    /// Kubeconfig file; KUBECONFIG or ~/.kube/config if absent
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; its current one if absent
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// A mesh, wherever it is. Where nothing is said, it is the one named `weft` of
/// this machine if that is up, and the kubeconfig's cluster otherwise.
#[derive(Args, Clone)]
pub struct MeshArgs {
    /// Mesh of this machine (`meshctl local up`)
    #[arg(long, value_name = "MESH", value_parser = mesh_name, conflicts_with_all = ["kubeconfig", "context"])]
    pub name: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

#[derive(Args, Clone)]
pub struct InstallArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Values of the chart (deploy/chart/values.yaml says which)
    #[arg(short = 'f', long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// One value of the chart
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Issuer made with `meshctl ca init`; one is made if absent
    #[arg(long, value_name = "FOLDER")]
    pub ca: Option<PathBuf>,
    /// Print what would be applied, and apply nothing
    #[arg(long)]
    pub print: bool,
}

#[derive(Args, Clone)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Even if pods still have sidecars
    #[arg(long)]
    pub force: bool,
    /// The mesh's kinds too, and with them every policy
    #[arg(long)]
    pub crds: bool,
}

#[derive(Args, Clone)]
pub struct RotateArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Issuer made with `meshctl ca init`; a new root and issuer are made if absent
    #[arg(long, value_name = "FOLDER")]
    pub ca: Option<PathBuf>,
    /// Seconds to wait at each step for proxies to follow
    #[arg(long, default_value_t = 300)]
    pub timeout: u64,
}

#[derive(Args, Clone)]
pub struct InjectArgs {
    /// Manifest; `-` reads standard input
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    pub filename: Vec<PathBuf>,
    /// Values of the chart that the mesh was installed with
    #[arg(long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// One value of the chart
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
}

fn mesh_name(text: &str) -> Result<String, String> {
    weft_local::check_mesh_name(text).map(|()| text.to_owned())
}

#[derive(Args)]
pub struct StatArgs {
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Only this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Over the last seconds; 0: since the control plane started
    #[arg(long, default_value_t = 60)]
    pub window: u32,
}

#[derive(Subcommand)]
pub enum LocalCommand {
    /// Starts a mesh and waits until everything in it is ready
    Up(UpArgs),
    /// Changes a mesh and waits until the change is in force
    Apply(FilesArgs),
    /// Takes objects away and waits until they are gone
    Delete(FilesArgs),
    /// Lists pods
    Ps(LocalArgs),
    /// Runs a command within a pod, as the application's user
    Exec(ExecArgs),
    /// Prints what a container wrote
    Logs(LogsArgs),
    /// Ends a mesh; nothing of it stays behind
    Down(LocalArgs),
    /// The process of a mesh
    #[command(hide = true)]
    Engine {
        #[arg(long)]
        settings: String,
        #[arg(long)]
        inner: bool,
    },
    /// The process of a pod
    #[command(hide = true)]
    Pod,
}

#[derive(Args)]
pub struct FilesArgs {
    #[command(flatten)]
    pub mesh: LocalArgs,
    /// Manifest, or folder of manifests; `-` reads standard input
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    pub filename: Vec<PathBuf>,
}

#[derive(Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub files: FilesArgs,
    /// Trust domain of the mesh
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    /// Issuer made with `meshctl ca init`; a new one if absent
    #[arg(long, value_name = "FOLDER")]
    pub ca: Option<PathBuf>,
    /// Life of workloads' certificates
    #[arg(long, default_value = "24h")]
    pub leaf_lifetime: String,
    /// OTLP gRPC collector for traces, http://HOST:PORT
    #[arg(long, default_value = "")]
    pub otlp_endpoint: String,
    /// Part of new traces that are recorded, 0 to 1
    #[arg(long, default_value_t = 0.01)]
    pub trace_sampling: f64,
    /// What control plane and sidecars log
    #[arg(long, default_value = "info")]
    pub log: String,
    /// Data threads of each sidecar
    #[arg(long, default_value_t = 1)]
    pub workers: u16,
}

#[derive(Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub mesh: LocalArgs,
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Pod, or deploy/NAME
    pub pod: String,
    /// Command and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Args)]
pub struct LogsArgs {
    #[command(flatten)]
    pub mesh: LocalArgs,
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Pod, or deploy/NAME
    #[arg(required_unless_present_any = ["engine", "control_plane"])]
    pub pod: Option<String>,
    /// Container; `weft-proxy` is the sidecar
    #[arg(short, long)]
    pub container: Option<String>,
    /// The engine's own log
    #[arg(long)]
    pub engine: bool,
    /// The control plane's log
    #[arg(long)]
    pub control_plane: bool,
}

#[derive(Subcommand)]
pub enum ProxyCommand {
    /// What a sidecar knows and runs
    Config(ProxyArgs),
    /// A sidecar's metrics, as Prometheus reads them
    Metrics(ProxyArgs),
    /// What a sidecar wrote
    Logs(ProxyArgs),
}

#[derive(Args)]
pub struct ProxyArgs {
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Pod, or deploy/NAME
    pub pod: String,
}

/// Seen from a pod.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// To it.
    Inbound,
    /// From it.
    Outbound,
}

#[derive(Args)]
pub struct TapArgs {
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Pod, or deploy/NAME
    pub pod: String,
    /// Only requests to the pod, or from it
    #[arg(long, value_enum)]
    pub direction: Option<Direction>,
    /// Only this method
    #[arg(long)]
    pub method: Option<String>,
    /// Only paths that start so
    #[arg(long)]
    pub path: Option<String>,
    /// Only this status, or its class: 503, 5xx
    #[arg(long)]
    pub status: Option<String>,
    /// Only this workload or service at the other side: NAME or NAMESPACE/NAME
    #[arg(long)]
    pub peer: Option<String>,
    /// End after so many
    #[arg(long, value_name = "N")]
    pub max: Option<u64>,
}

#[derive(Args)]
pub struct AnalyzeArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Manifests, or folders of them, instead of a cluster; `-` reads standard input
    #[arg(short, long = "filename", value_name = "PATH", num_args = 1..)]
    pub filename: Vec<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

#[derive(Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Only this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Over the last seconds
    #[arg(long, default_value_t = 10)]
    pub window: u32,
    /// End after so many looks
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

#[derive(Subcommand)]
pub enum CaCommand {
    /// Makes a root and the issuer of a trust domain
    Init {
        /// Where to; must not hold a root yet, unless --root is given
        #[arg(long, default_value = "weft-ca")]
        folder: PathBuf,
        /// Trust domain of the issuer
        #[arg(long, default_value = "cluster.local")]
        trust_domain: String,
        /// Folder with an existing root (root.crt, root.key)
        #[arg(long)]
        root: Option<PathBuf>,
        /// Life of the issuer, in days
        #[arg(long, default_value_t = 365)]
        days: u32,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Shows the authority of a mesh and when its certificates end
    Show(MeshArgs),
    /// Gives a cluster's mesh another root and issuer; nothing restarts, nothing is lost
    Rotate(RotateArgs),
}

#[derive(Subcommand)]
pub enum AuthzCommand {
    /// Says whether a call would be allowed, and which policy, rule and field decides
    Explain(ExplainArgs),
}

#[derive(Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Caller: a pod or deploy/NAME; NAMESPACE/POD for another namespace
    #[arg(long)]
    pub from: String,
    /// Callee: a pod, deploy/NAME or a service, and the pod's port; NAMESPACE/NAME:PORT
    #[arg(long)]
    pub to: String,
    /// Namespace of both, where nothing else is said
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// HTTP method; without method and path the call is an opaque connection
    #[arg(long)]
    pub method: Option<String>,
    /// HTTP path
    #[arg(long)]
    pub path: Option<String>,
    /// Host that is called
    #[arg(long, default_value = "")]
    pub host: String,
    /// Header, `name: value`
    #[arg(short = 'H', long = "header")]
    pub headers: Vec<String>,
}
