//! The mesh's own kinds, `weft.dev/v1alpha1`.
#![allow(missing_docs)]

use serde::{Deserialize, Serialize};

use crate::core::LabelSelector;
use crate::gateway::{HttpPathMatch, HttpValueMatch};
use crate::meta::Metadata;

/// Who may call what. The shape is that of Gateway API's GEP-3779, extended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    #[serde(default, rename = "apiVersion")]
    pub api_version: String,
    pub metadata: Metadata,
    pub spec: AuthorizationPolicySpec,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    pub target_refs: Vec<PolicyTarget>,
    pub action: PolicyAction,
    #[serde(default)]
    pub mode: PolicyMode,
    #[serde(default)]
    pub rules: Vec<AuthorizationRule>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyAction {
    #[default]
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyMode {
    #[default]
    Enforce,
    DryRun,
}

/// Pods of the policy's namespace by label. An empty selector: all of them; in
/// the mesh's root namespace: every pod of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyTarget {
    #[serde(default)]
    pub group: String,
    pub kind: String,
    #[serde(default)]
    pub selector: LabelSelector,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<PolicySource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_attributes: Option<NetworkAttributes>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http_attributes: Vec<HttpAttributes>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum PolicySource {
    #[serde(rename_all = "camelCase")]
    ServiceAccount {
        service_account: ServiceAccountRef,
    },
    #[serde(rename = "SPIFFE")]
    Spiffe {
        spiffe: String,
    },
    Namespace {
        namespace: String,
    },
    #[serde(rename_all = "camelCase")]
    TrustDomain {
        trust_domain: String,
    },
    #[serde(rename = "IPBlock", rename_all = "camelCase")]
    IpBlock {
        ip_block: IpBlock,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountRef {
    pub name: String,
    /// The policy's own where nothing is said; `*`: all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpBlock {
    pub cidr: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkAttributes {
    pub ports: Vec<u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpAttributes {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<HttpPathMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HttpValueMatch>,
    /// `package.Service/Method` or `package.Service/*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grpc_methods: Vec<String>,
}

/// Whether callers must prove who they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationPolicy {
    #[serde(default, rename = "apiVersion")]
    pub api_version: String,
    pub metadata: Metadata,
    pub spec: AuthenticationPolicySpec,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationPolicySpec {
    pub target_refs: Vec<PolicyTarget>,
    pub mtls: Mtls,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mtls {
    pub mode: MtlsMode,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMtls>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MtlsMode {
    #[default]
    Permissive,
    Strict,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMtls {
    pub port: u16,
    pub mode: MtlsMode,
}
