//! ReferenceGrant (gateway.networking.k8s.io/v1, GEP-709): a namespace allows
//! routes of others to name its Services.
#![allow(missing_docs)]

use serde::{Deserialize, Serialize};

use crate::meta::Metadata;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrant {
    #[serde(default, rename = "apiVersion")]
    pub api_version: String,
    pub metadata: Metadata,
    pub spec: ReferenceGrantSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceGrantSpec {
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantTo {
    #[serde(default)]
    pub group: String,
    pub kind: String,
    /// Any where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ReferenceGrantSpec {
    /// Whether a route of this kind and namespace may name a Service.
    pub fn allows(&self, kind: &str, namespace: &str, service: &str) -> bool {
        let from = |f: &GrantFrom| {
            f.group == "gateway.networking.k8s.io" && f.kind == kind && f.namespace == namespace
        };
        let to = |t: &GrantTo| {
            t.group.is_empty()
                && t.kind == "Service"
                && t.name.as_deref().is_none_or(|name| name == service)
        };
        self.from.iter().any(from) && self.to.iter().any(to)
    }
}
