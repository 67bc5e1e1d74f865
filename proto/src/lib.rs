//! The gRPC contracts of the mesh, generated from `weft.proto`.
//!
//! `weft.proto` is the documentation of every message and field.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("weft.v1");

/// Names of resources, as `weft.proto` lists them.
pub mod names {
    use std::net::SocketAddr;

    /// The proxy's own pod.
    pub const INBOUND: &str = "inbound";
    /// What holds for the whole mesh.
    pub const MESH: &str = "mesh";

    /// What an address leads to.
    pub fn destination(address: SocketAddr) -> String {
        format!("dest/{address}")
    }

    /// The addresses of a host name.
    pub fn name(host: &str) -> String {
        format!("name/{host}")
    }

    /// The endpoints of a service's port.
    pub fn endpoints(namespace: &str, service: &str, port: u16) -> String {
        format!("endpoints/{namespace}/{service}/{port}")
    }
}
