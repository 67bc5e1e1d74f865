//! The Kubernetes objects that the mesh reads, and the kinds it defines.
//!
//! Reading is strict: a kind or a field that is not understood is refused by
//! name, because ignoring it would change what the author meant.

mod core;
mod gateway;
mod grpc_route;
mod live;
mod load;
mod meta;
mod policy;
mod quantity;
mod reference_grant;
mod validate;

pub use crate::core::*;
pub use gateway::*;
pub use grpc_route::*;
pub use live::{is_service_parent, parse_live};
pub use load::{LoadError, MAX_MANIFEST_BYTES, load_path, parse_manifests, parse_object};
pub use meta::{Metadata, ObjectKey};
pub use policy::*;
pub use quantity::GatewayDuration;
pub use reference_grant::*;
pub use validate::{Problem, is_dns_label, is_dns_name, validate};

use serde::{Deserialize, Serialize};

/// By this name an XMesh chooses this mesh, and a route's status says whose
/// words they are.
pub const CONTROLLER_NAME: &str = "weft.dev/mesh";
/// Label on a pod that has a sidecar; set by whoever injects it.
pub const LABEL_INJECTED: &str = "weft.dev/injected";
/// Label of a namespace whose pods get a sidecar: `enabled`.
pub const LABEL_INJECTION: &str = "weft.dev/injection";
/// Label by which a pod names its Deployment.
pub const LABEL_DEPLOYMENT: &str = "weft.dev/deployment";
/// Annotation by which a pod opts out, `disabled`, or in, `enabled`, whatever
/// its namespace says.
pub const ANNOTATION_INJECT: &str = "weft.dev/inject";
/// Namespace of the mesh itself: policies in it with an empty selector hold
/// for every pod.
pub const ROOT_NAMESPACE: &str = "weft-system";

/// Any object that the mesh understands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
#[allow(missing_docs)]
pub enum Object {
    Namespace(Namespace),
    ServiceAccount(ServiceAccount),
    Service(Service),
    Pod(Pod),
    Deployment(Deployment),
    EndpointSlice(EndpointSlice),
    HTTPRoute(HttpRoute),
    GRPCRoute(GrpcRoute),
    ReferenceGrant(ReferenceGrant),
    AuthorizationPolicy(AuthorizationPolicy),
    AuthenticationPolicy(AuthenticationPolicy),
}

/// Runs `$body` with the object inside, whatever its kind.
macro_rules! each {
    ($object:expr, $inner:ident => $body:expr) => {
        match $object {
            Object::Namespace($inner) => $body,
            Object::ServiceAccount($inner) => $body,
            Object::Service($inner) => $body,
            Object::Pod($inner) => $body,
            Object::Deployment($inner) => $body,
            Object::EndpointSlice($inner) => $body,
            Object::HTTPRoute($inner) => $body,
            Object::GRPCRoute($inner) => $body,
            Object::ReferenceGrant($inner) => $body,
            Object::AuthorizationPolicy($inner) => $body,
            Object::AuthenticationPolicy($inner) => $body,
        }
    };
}

impl Object {
    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        each!(self, o => &o.metadata)
    }

    /// Its metadata, to be changed.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        each!(self, o => &mut o.metadata)
    }

    /// Its kind, as manifests write it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::ServiceAccount(_) => "ServiceAccount",
            Self::Service(_) => "Service",
            Self::Pod(_) => "Pod",
            Self::Deployment(_) => "Deployment",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::HTTPRoute(_) => "HTTPRoute",
            Self::GRPCRoute(_) => "GRPCRoute",
            Self::ReferenceGrant(_) => "ReferenceGrant",
            Self::AuthorizationPolicy(_) => "AuthorizationPolicy",
            Self::AuthenticationPolicy(_) => "AuthenticationPolicy",
        }
    }

    /// Its kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind().to_owned(),
            namespace: self.metadata().namespace.clone(),
            name: self.metadata().name.clone(),
        }
    }
}
