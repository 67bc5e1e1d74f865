//! Gives pods a sidecar: as a pure function of a manifest, which the mutating
//! webhook and `meshctl inject` share.
//!
//! Injection is a removal followed by an insertion, so that doing it twice is
//! doing it once, and that a newer injector brings an older one's pods up to date.

mod annotations;
mod probes;
mod sidecar;
pub mod webhook;
mod workload;

pub use annotations::{Annotations, KNOWN_ANNOTATIONS};
pub use sidecar::{INIT, PROXY};
pub use workload::{Outcome, inject, uninject};

use serde::{Deserialize, Serialize};

/// How sidecars are made in this cluster; the installation writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InjectorSettings {
    /// Image with `weft-proxy` and `weft-init`.
    pub image: String,
    /// When nodes ask for it anew.
    #[serde(default = "if_not_present")]
    pub image_pull_policy: String,
    /// The control plane, HOST:PORT.
    pub control_plane: String,
    /// The identity that it must prove.
    pub control_plane_identity: String,
    /// Domain of services' names.
    #[serde(default = "cluster_local")]
    pub cluster_domain: String,
    /// What sidecars log.
    #[serde(default = "info")]
    pub log: String,
    /// Sidecars are init containers with `restartPolicy: Always` (KEP-753;
    /// Kubernetes 1.29 and later).
    #[serde(default = "yes")]
    pub native_sidecars: bool,
    /// Containers may sleep before they are stopped (KEP-3960; Kubernetes 1.30
    /// and later).
    #[serde(default = "yes")]
    pub sleep_hooks: bool,
    /// Who sets the redirect rules.
    #[serde(default)]
    pub capture: Capture,
    /// Resources of sidecars, as in a container; an annotation of a pod goes first.
    #[serde(default)]
    pub resources: serde_json::Value,
}

/// Who sets the redirect rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Capture {
    /// An init container of each pod, with NET_ADMIN and NET_RAW.
    #[default]
    InitContainer,
    /// The CNI plugin of the node; pods need no capability.
    Cni,
}

fn if_not_present() -> String {
    "IfNotPresent".to_owned()
}

fn cluster_local() -> String {
    "cluster.local".to_owned()
}

fn info() -> String {
    "info".to_owned()
}

fn yes() -> bool {
    true
}

/// Why a pod cannot have a sidecar. The text says where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InjectError(pub String);
