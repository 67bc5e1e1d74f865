//! Objects into a cluster and out of it, whatever their kind.

use std::collections::HashMap;

use anyhow::Context;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, Scope, pinned_kind};
use kube::{Api, Client};
use serde_json::Value;

/// By this name the API server knows who wrote a field (server-side apply).
const FIELD_MANAGER: &str = "meshctl";

/// Applies objects and remembers where each kind lives.
pub struct Objects {
    client: Client,
    kinds: HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>,
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// An API server's own words, without what surrounds them.
pub fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => other.into(),
    }
}

/// Kind and name, for people.
pub fn describe(object: &Value) -> String {
    format!(
        "{} {}",
        text(object, "/kind"),
        text(object, "/metadata/name")
    )
}

impl Objects {
    /// Of a cluster.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            kinds: HashMap::new(),
        }
    }

    async fn api(&mut self, object: &Value) -> anyhow::Result<Api<DynamicObject>> {
        let version = text(object, "/apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, text(object, "/kind"));
        if !self.kinds.contains_key(&kind) {
            let found = pinned_kind(&self.client, &kind).await;
            let found =
                found.with_context(|| format!("the cluster does not know {}", describe(object)))?;
            self.kinds.insert(kind.clone(), found);
        }
        let (resource, capabilities) = self.kinds.get(&kind).context("no such kind")?;
        Ok(match capabilities.scope {
            Scope::Cluster => Api::all_with(self.client.clone(), resource),
            Scope::Namespaced => Api::namespaced_with(
                self.client.clone(),
                text(object, "/metadata/namespace"),
                resource,
            ),
        })
    }

    /// Creates an object or brings it up to date.
    pub async fn apply(&mut self, object: &Value) -> anyhow::Result<()> {
        let force = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.api(object).await?;
        let applied = api
            .patch(
                text(object, "/metadata/name"),
                &force,
                &Patch::Apply(object),
            )
            .await;
        applied
            .map(|_| ())
            .map_err(plain)
            .with_context(|| format!("{} cannot be applied", describe(object)))
    }

    /// Deletes an object; `false`: there was none.
    pub async fn delete(&mut self, object: &Value) -> anyhow::Result<bool> {
        let Ok(api) = self.api(object).await else {
            return Ok(false);
        };
        match api
            .delete(text(object, "/metadata/name"), &DeleteParams::background())
            .await
        {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => {
                Err(plain(error)).with_context(|| format!("{} cannot be deleted", describe(object)))
            }
        }
    }
}
