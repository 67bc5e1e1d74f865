//! What `meshctl`, the engine and the pods' supervisors say to each other:
//! JSON, one message a line.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weft_api::{Container, Object, ObjectKey};

/// From `meshctl` to the engine.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make these objects so. `first`: this starts the mesh, which ends again
    /// if the caller goes away before it is up.
    Apply {
        /// What is wanted.
        objects: Vec<Object>,
        /// The mesh is only just being made.
        first: bool,
    },
    /// Take these objects away.
    Delete {
        /// Which.
        keys: Vec<ObjectKey>,
    },
    /// List the pods.
    Ps,
    /// End the mesh.
    Down,
}

/// From the engine to `meshctl`; the last is `Done` or `Failed`.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// What is being waited for.
    Progress(String),
    /// The pods.
    Pods(Vec<PodState>),
    /// It is so.
    Done,
    /// It is not so, and why.
    Failed(String),
}

/// A pod, as `meshctl local ps` shows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PodState {
    pub pod: String,
    pub namespace: String,
    pub ip: String,
    pub ips: Vec<String>,
    pub ready: bool,
    pub restarts: u32,
    /// Of the first container, on the host.
    pub pid: u32,
    /// Of the process that holds the pod's namespaces, on the host.
    pub sandbox_pid: u32,
    pub phase: String,
    pub meshed: bool,
    pub containers: Vec<ContainerState>,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ContainerState {
    pub name: String,
    pub ready: bool,
    pub restarts: u32,
    /// On the host; 0 while it does not run.
    pub pid: u32,
    /// How it ended the last time.
    pub last_exit: String,
}

/// From the engine to a supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToPod {
    /// The network is there: start.
    Start(Box<PodPlan>),
    /// End within so many seconds.
    Stop {
        /// Between SIGTERM and SIGKILL.
        grace_seconds: u32,
    },
}

/// Everything a supervisor must know.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PodPlan {
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub addresses: Vec<IpAddr>,
    pub gateway: IpAddr,
    pub containers: Vec<Container>,
    /// `None`: not meshed.
    pub sidecar: Option<SidecarPlan>,
    /// The pod's own folder.
    pub folder: String,
    pub log_prefix: String,
    pub grace_seconds: u32,
}

/// How the sidecar is started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SidecarPlan {
    pub program: String,
    pub control_plane: String,
    pub control_plane_identity: String,
    pub trust_bundle: String,
    pub token: String,
    pub log: String,
    pub workers: u16,
}

/// From a supervisor to the engine.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromPod {
    /// The namespaces are made.
    Sandbox,
    /// A container's state changed.
    Container(ContainerState),
    /// It cannot start.
    Failed(String),
}
