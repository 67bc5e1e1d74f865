//! What every object carries.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// ObjectMeta, as far as the mesh uses it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Metadata {
    pub name: String,
    /// `default` where a manifest says nothing; empty for cluster-wide kinds.
    pub namespace: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub creation_timestamp: String,
    /// RFC 3339; set while the object is going away.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deletion_timestamp: String,
}

/// Which object: kind, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ObjectKey {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}
