//! GRPCRoute (gateway.networking.k8s.io/v1): an HTTPRoute by another name, for
//! a gRPC call is a request to `/SERVICE/METHOD` (GEP-1016).
#![allow(missing_docs)]

use serde::{Deserialize, Serialize};

use crate::meta::Metadata;
use crate::{
    HttpBackendRef, HttpPathMatch, HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRule,
    HttpRouteSpec, HttpValueMatch, ParentRef, PathMatchType, ValueMatchType,
};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRoute {
    #[serde(default, rename = "apiVersion")]
    pub api_version: String,
    pub metadata: Metadata,
    pub spec: GrpcRouteSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcRouteSpec {
    pub parent_refs: Vec<ParentRef>,
    pub rules: Vec<GrpcRouteRule>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcRouteRule {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<GrpcRouteMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpRouteFilter>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<HttpBackendRef>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcRouteMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<GrpcMethodMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HttpValueMatch>,
}

/// At least one of service and method.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcMethodMatch {
    #[serde(rename = "type")]
    pub match_type: ValueMatchType,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
}

impl GrpcMethodMatch {
    fn as_path(&self) -> HttpPathMatch {
        let part = |text: &str| match text {
            "" => "[^/]+".to_owned(),
            text => match self.match_type {
                ValueMatchType::Exact => regex::escape(text),
                ValueMatchType::RegularExpression => format!("(?:{text})"),
            },
        };
        let both = !self.service.is_empty() && !self.method.is_empty();
        if both && self.match_type == ValueMatchType::Exact {
            return HttpPathMatch {
                match_type: PathMatchType::Exact,
                value: format!("/{}/{}", self.service, self.method),
            };
        }
        HttpPathMatch {
            match_type: PathMatchType::RegularExpression,
            value: format!("/{}/{}", part(&self.service), part(&self.method)),
        }
    }
}

impl GrpcRouteSpec {
    /// The HTTPRoute that says the same.
    pub fn as_http(&self) -> HttpRouteSpec {
        let matched = |m: &GrpcRouteMatch| HttpRouteMatch {
            path: m.method.as_ref().map(GrpcMethodMatch::as_path),
            headers: m.headers.clone(),
            ..Default::default()
        };
        let rule = |rule: &GrpcRouteRule| HttpRouteRule {
            name: rule.name.clone(),
            matches: rule.matches.iter().map(matched).collect(),
            filters: rule.filters.clone(),
            backend_refs: rule.backend_refs.clone(),
            ..Default::default()
        };
        HttpRouteSpec {
            parent_refs: self.parent_refs.clone(),
            rules: self.rules.iter().map(rule).collect(),
        }
    }
}

impl GrpcRoute {
    /// The HTTPRoute that says the same.
    pub fn as_http(&self) -> HttpRoute {
        HttpRoute {
            api_version: self.api_version.clone(),
            metadata: self.metadata.clone(),
            spec: self.spec.as_http(),
        }
    }
}
