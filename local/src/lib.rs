//! A mesh on one machine, without Kubernetes: the same manifests, the same
//! proxy and control plane; only what starts processes is here.
//!
//! One process is the engine of a mesh, in a PID, mount and network namespace
//! of its own. Each pod is a supervisor process with network, mount and host
//! name of its own. Everything hangs on the engine: when it ends, however it
//! ends, the kernel ends every process, namespace, rule and mount with it.

pub mod client;
mod dns;
pub mod engine;
mod files;
mod network;
mod objects;
pub mod pod;
pub mod protocol;
mod rollout;
mod tokens;

use std::path::{Path, PathBuf};

/// Folder of all meshes' state.
const RUN: &str = "/run/weft";
/// The user that applications run as.
pub const APPLICATION_UID: u32 = 1000;
/// Names of meshes are used in paths.
pub fn check_mesh_name(name: &str) -> Result<(), String> {
    if weft_api::is_dns_label(name) && name.len() <= 32 {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not the name of a mesh: lower-case letters, digits and '-', at most 32"
    ))
}

/// Where a mesh keeps its state.
#[derive(Debug, Clone)]
pub struct MeshPaths {
    root: PathBuf,
}

impl MeshPaths {
    /// Of a mesh by name.
    pub fn new(name: &str) -> Self {
        Self {
            root: Path::new(RUN).join(name),
        }
    }

    /// Everything of this mesh is in here.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the engine listens for commands.
    pub fn engine_socket(&self) -> PathBuf {
        self.root.join("engine.sock")
    }

    /// Where the control plane listens for operators.
    pub fn operator_socket(&self) -> PathBuf {
        self.root.join("operator.sock")
    }

    /// Manifests that the control plane watches.
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// The issuer's certificate and key.
    pub fn issuer(&self) -> PathBuf {
        self.root.join("issuer")
    }

    /// Logs of the engine, the control plane and containers.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The log of a container.
    pub fn container_log(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.logs()
            .join(format!("{namespace}_{pod}_{container}.log"))
    }

    /// A pod's own files.
    pub fn pod(&self, namespace: &str, pod: &str) -> PathBuf {
        self.root.join("pods").join(format!("{namespace}_{pod}"))
    }

    /// The process that everything hangs on.
    pub fn engine_pid(&self) -> PathBuf {
        self.root.join("engine.pid")
    }
}
