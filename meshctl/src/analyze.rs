//! `meshctl analyze`: what is wrong with manifests, or with a cluster, before
//! somebody notices. Each message has a code and says how to mend it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use kube::api::{DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::pinned_kind;
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Value, json};
use weft_api::{
    LABEL_INJECTION, Object, ObjectKey, Pod, PolicySource, PolicyTarget, ROOT_NAMESPACE,
};
use weft_control_plane::index::{Index, MeshSettings};
use weft_control_plane::kubernetes::read_object;
use weft_injector::Outcome;

use crate::cli::AnalyzeArgs;
use crate::cluster::{block_on, client};
use crate::inject::settings;
use crate::output::{green, print, red, yellow};

#[derive(Serialize, Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    code: &'static str,
    level: &'static str,
    object: String,
    text: String,
}

/// What is looked at: objects as the mesh reads them, and as they were written.
#[derive(Default)]
struct Subject {
    objects: BTreeMap<ObjectKey, Object>,
    written: Vec<Value>,
    messages: BTreeSet<Message>,
    /// Everything there is was read: what is missing is missing.
    complete: bool,
}

/// Kinds that are asked of a cluster.
const KINDS: [(&str, &str, &str); 15] = [
    ("", "v1", "Namespace"),
    ("", "v1", "ServiceAccount"),
    ("", "v1", "Service"),
    ("", "v1", "Pod"),
    ("discovery.k8s.io", "v1", "EndpointSlice"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "StatefulSet"),
    ("apps", "v1", "DaemonSet"),
    ("batch", "v1", "CronJob"),
    ("batch", "v1", "Job"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute"),
    ("gateway.networking.k8s.io", "v1", "GRPCRoute"),
    ("gateway.networking.k8s.io", "v1", "ReferenceGrant"),
    ("weft.dev", "v1alpha1", "AuthorizationPolicy"),
    ("weft.dev", "v1alpha1", "AuthenticationPolicy"),
];

pub fn run(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let mut subject = Subject::default();
    if args.filename.is_empty() {
        subject.complete = true;
        block_on(async { subject.read_cluster(&client(&args.cluster).await?).await })?;
    }
    for path in &args.filename {
        subject.read_files(path)?;
    }
    subject.look()?;
    let messages: Vec<Message> = subject.messages.into_iter().collect();
    print(args.output, &messages, || {
        let line = |m: &Message| {
            let level = match m.level {
                "error" => red("error  "),
                "warning" => yellow("warning"),
                _ => "note   ".to_owned(),
            };
            format!("{level} {} {}: {}", m.code, m.object, m.text)
        };
        let mut lines: Vec<String> = messages.iter().map(line).collect();
        if lines.is_empty() {
            lines.push(green("nothing to mend"));
        }
        lines.join("\n")
    })?;
    let wrong = messages.iter().any(|m| m.level == "error");
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn name_of(value: &Value) -> String {
    let namespace = match text(value, "/metadata/namespace") {
        "" => "default",
        namespace => namespace,
    };
    format!(
        "{} {namespace}/{}",
        text(value, "/kind"),
        text(value, "/metadata/name")
    )
}

impl Subject {
    fn say(
        &mut self,
        code: &'static str,
        level: &'static str,
        object: impl Into<String>,
        text: impl Into<String>,
    ) {
        self.messages.insert(Message {
            code,
            level,
            object: object.into(),
            text: text.into(),
        });
    }

    fn read_files(&mut self, path: &Path) -> anyhow::Result<()> {
        if path.is_dir() {
            let mut files: Vec<_> = std::fs::read_dir(path)?
                .flatten()
                .map(|e| e.path())
                .collect();
            files.retain(|f| {
                f.extension()
                    .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
            });
            files.sort();
            return files.iter().try_for_each(|f| self.read_files(f));
        }
        let mut content = String::new();
        if path.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut content)?;
        } else {
            content = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        }
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&content).with_context(|| path.display().to_string())?;
        for document in documents.into_iter().filter(|d| !d.is_null()) {
            match document.get("items").and_then(Value::as_array) {
                Some(items) => items.iter().for_each(|item| self.take(item.clone())),
                None => self.take(document),
            }
        }
        Ok(())
    }

    async fn read_cluster(&mut self, client: &Client) -> anyhow::Result<()> {
        for (group, version, kind) in KINDS {
            let gvk = GroupVersionKind::gvk(group, version, kind);
            let Ok((resource, _)) = pinned_kind(client, &gvk).await else {
                self.say("WEFT012", "warning", kind, "the cluster does not have this kind: routes need the Gateway API's, policies those of `meshctl install`");
                continue;
            };
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            for object in api.list(&ListParams::default()).await?.items {
                let mut value = serde_json::to_value(&object)?;
                // Lists leave them out of their items.
                if let Some(map) = value.as_object_mut() {
                    map.insert("kind".to_owned(), json!(kind));
                    map.insert("apiVersion".to_owned(), json!(resource.api_version));
                }
                self.take(value);
            }
        }
        Ok(())
    }

    fn take(&mut self, mut written: Value) {
        let cluster_wide = text(&written, "/kind") == "Namespace";
        if let Some(metadata) = written.get_mut("metadata").and_then(Value::as_object_mut)
            && !cluster_wide
        {
            metadata
                .entry("namespace")
                .or_insert_with(|| json!("default"));
        }
        match read_object(&written) {
            Ok(Some(object)) => {
                self.objects.insert(object.key(), object);
            }
            Ok(None) => {}
            Err(problems) => {
                for problem in problems {
                    self.say("WEFT001", "error", name_of(&written), problem.to_string());
                }
            }
        }
        self.written.push(written);
    }

    fn look(&mut self) -> anyhow::Result<()> {
        self.look_at_status();
        self.look_at_injection()?;
        self.look_at_policies();
        self.look_at_services();
        Ok(())
    }

    /// What the control plane would say of each object.
    fn look_at_status(&mut self) {
        let mut index = Index::new(MeshSettings::default());
        index.replace(self.objects.clone());
        for status in index.status() {
            let object = format!("{} {}/{}", status.kind, status.namespace, status.name);
            for condition in status.conditions.iter().filter(|c| !c.status) {
                let code = match condition.r#type.as_str() {
                    "ResolvedRefs" => "WEFT003",
                    _ if condition.reason == "Conflicted" => "WEFT010",
                    _ => "WEFT002",
                };
                self.say(
                    code,
                    "error",
                    object.clone(),
                    format!("{} ({})", condition.message, condition.reason),
                );
            }
        }
    }

    fn joined(&self, namespace: &str) -> bool {
        self.objects.values().any(|o| {
            matches!(o, Object::Namespace(n) if n.metadata.name == namespace
                && n.metadata.labels.get(LABEL_INJECTION).is_some_and(|v| v == "enabled"))
        })
    }

    /// Workloads that cannot have a sidecar, or will have none.
    fn look_at_injection(&mut self) -> anyhow::Result<()> {
        let settings = settings(&[], &[])?;
        for written in self.written.clone() {
            let kind = text(&written, "/kind");
            let owned = written.pointer("/metadata/ownerReferences").is_some();
            if owned
                || ![
                    "Pod",
                    "Deployment",
                    "StatefulSet",
                    "DaemonSet",
                    "Job",
                    "CronJob",
                ]
                .contains(&kind)
            {
                continue;
            }
            let namespace = text(&written, "/metadata/namespace");
            let joined = self.joined(namespace);
            let mut trial = written.clone();
            match weft_injector::inject(&mut trial, &settings) {
                Err(error) if joined => {
                    self.say("WEFT007", "error", name_of(&written), error.to_string())
                }
                Ok(Outcome::Skipped(why)) if joined => {
                    self.say(
                        "WEFT008",
                        "note",
                        name_of(&written),
                        format!("gets no sidecar: {why}"),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn pods(&self) -> Vec<&Pod> {
        let pods = self.objects.values().filter_map(|o| match o {
            Object::Pod(pod) => Some(pod),
            _ => None,
        });
        pods.collect()
    }

    fn look_at_policies(&mut self) {
        let selected = |subject: &Self, namespace: &str, targets: &[PolicyTarget]| {
            let everywhere = namespace == ROOT_NAMESPACE;
            let pods = subject
                .pods()
                .into_iter()
                .filter(|p| everywhere || p.metadata.namespace == namespace);
            let aimed = pods.filter(|p| {
                targets
                    .iter()
                    .any(|t| t.selector.matches(&p.metadata.labels))
            });
            aimed
                .map(|p| p.metadata.namespace.clone())
                .collect::<BTreeSet<_>>()
        };
        for object in self.objects.values().cloned().collect::<Vec<_>>() {
            let (targets, namespace) = match &object {
                Object::AuthorizationPolicy(p) => (&p.spec.target_refs, &p.metadata.namespace),
                Object::AuthenticationPolicy(p) => (&p.spec.target_refs, &p.metadata.namespace),
                _ => continue,
            };
            let name = object.key().to_string();
            let namespaces = selected(self, namespace, targets);
            if namespaces.is_empty() {
                self.say(
                    "WEFT004",
                    "warning",
                    &name,
                    "selects no pod: compare its matchLabels with the labels of the pods",
                );
            }
            let apart = |n: &&String| !self.joined(n) && self.knows_namespace(n);
            let apart: Vec<String> = namespaces.iter().filter(apart).cloned().collect();
            for namespace in apart {
                self.say("WEFT005", "warning", &name, format!("has no effect in the namespace {namespace}, which is not in the mesh: kubectl label namespace {namespace} {LABEL_INJECTION}=enabled"));
            }
            if let Object::AuthorizationPolicy(policy) = &object {
                self.look_at_sources(
                    &name,
                    &policy.metadata.namespace,
                    policy
                        .spec
                        .rules
                        .iter()
                        .flat_map(|r| &r.sources)
                        .cloned()
                        .collect(),
                );
            }
        }
    }

    fn knows_namespace(&self, namespace: &str) -> bool {
        self.complete
            || self
                .objects
                .values()
                .any(|o| matches!(o, Object::Namespace(n) if n.metadata.name == namespace))
    }

    fn look_at_sources(&mut self, policy: &str, own: &str, sources: Vec<PolicySource>) {
        for source in sources {
            let PolicySource::ServiceAccount {
                service_account: account,
            } = source
            else {
                continue;
            };
            let namespace = if account.namespace.is_empty() {
                own
            } else {
                &account.namespace
            };
            if account.name == "*" || namespace == "*" || account.name == "default" {
                continue;
            }
            let there = self.written.iter().any(|w| {
                text(w, "/kind") == "ServiceAccount"
                    && text(w, "/metadata/name") == account.name
                    && text(w, "/metadata/namespace") == namespace
            });
            if !there {
                self.say("WEFT011", "warning", policy, format!("names the ServiceAccount {namespace}/{}, which does not exist: nobody can be it", account.name));
            }
        }
    }

    /// Services that lead nowhere.
    fn look_at_services(&mut self) {
        for object in self.objects.values().cloned().collect::<Vec<_>>() {
            let Object::Service(service) = &object else {
                continue;
            };
            let (metadata, spec) = (&service.metadata, &service.spec);
            if spec.selector.is_empty() || !self.joined(&metadata.namespace) {
                continue;
            }
            let selects = |p: &&Pod| {
                p.metadata.namespace == metadata.namespace
                    && weft_api::contains_all(&p.metadata.labels, &spec.selector)
            };
            let pods: Vec<Pod> = self.pods().into_iter().filter(selects).cloned().collect();
            let name = object.key().to_string();
            if pods.is_empty() {
                self.say(
                    "WEFT006",
                    "warning",
                    &name,
                    "selects no pod: compare its selector with the labels of the pods",
                );
            }
            for port in &spec.ports {
                if !pods.is_empty() && pods.iter().all(|pod| port.target_in(pod).is_none()) {
                    self.say(
                        "WEFT009",
                        "error",
                        &name,
                        format!(
                            "port {} leads to a named port that its pods do not have",
                            port.port
                        ),
                    );
                }
            }
        }
    }
}
