//! Kubernetes' own objects, as far as the mesh reads them.
//!
//! The API server has validated these, and there is more in them than the mesh
//! uses: what is not named here is left out, so that it costs no memory and a
//! change of it no computation.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_api as api;
use weft_api::Problem;
use weft_api::{ANNOTATION_INJECT, LABEL_DEPLOYMENT, LABEL_SERVICE_NAME, Metadata};

/// Any object, as the index takes it. A workload stands for the pod of its
/// template. `None`: the mesh does not read this kind.
///
/// An error says what of the mesh's own kinds and the Gateway API's cannot be used.
pub fn read_object(written: &Value) -> Result<Option<api::Object>, Vec<Problem>> {
    let kind = written
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    fn typed<K: DeserializeOwned>(written: &Value) -> Result<K, Vec<Problem>> {
        K::deserialize(written).map_err(|e| {
            vec![Problem {
                path: String::new(),
                text: e.to_string(),
            }]
        })
    }
    Ok(match kind {
        "Service" => Some(service(&typed(written)?)),
        "EndpointSlice" => Some(endpoint_slice(&typed(written)?)),
        "Pod" => Some(pod(&typed(written)?)),
        "Namespace" => {
            let read: core::Namespace = typed(written)?;
            let mut own = metadata(&read.metadata);
            own.labels = read.metadata.labels.unwrap_or_default();
            Some(api::Object::Namespace(api::Namespace {
                api_version: String::new(),
                metadata: own,
            }))
        }
        "Deployment" | "StatefulSet" | "DaemonSet" => template(written)?,
        _ => api::parse_live(kind, written.clone())?,
    })
}

fn template(written: &Value) -> Result<Option<api::Object>, Vec<Problem>> {
    let Some(mut made) = written.pointer("/spec/template").cloned() else {
        return Ok(None);
    };
    let name = written
        .pointer("/metadata/name")
        .cloned()
        .unwrap_or_default();
    let namespace = written
        .pointer("/metadata/namespace")
        .cloned()
        .unwrap_or_default();
    if let Some(metadata) = made.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("name".to_owned(), name);
        metadata.insert("namespace".to_owned(), namespace);
    }
    let read = core::Pod::deserialize(&made).map_err(|e| {
        vec![Problem {
            path: "spec.template".to_owned(),
            text: e.to_string(),
        }]
    })?;
    Ok(Some(pod(&read)))
}

/// As manifests write times; empty where there is none.
pub fn time(time: Option<&Time>) -> String {
    time.map(|t| t.0.to_string()).unwrap_or_default()
}

fn metadata(meta: &ObjectMeta) -> Metadata {
    Metadata {
        name: meta.name.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        deletion_timestamp: time(meta.deletion_timestamp.as_ref()),
        ..Metadata::default()
    }
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|p| *p > 0)
}

fn is_tcp(protocol: Option<&String>) -> bool {
    protocol.is_none_or(|p| p == "TCP")
}

/// A Service, with the ports that the mesh carries: those of TCP.
pub fn service(service: &core::Service) -> api::Object {
    let empty = core::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let ports = spec.ports.iter().flatten();
    let ports = ports
        .filter(|p| is_tcp(p.protocol.as_ref()))
        .filter_map(|p| {
            Some(api::ServicePort {
                name: p.name.clone().unwrap_or_default(),
                port: port(p.port)?,
                target_port: p.target_port.as_ref().and_then(|t| match t {
                    IntOrString::Int(number) => Some(api::PortRef::Number(port(*number)?)),
                    IntOrString::String(name) => Some(api::PortRef::Name(name.clone())),
                }),
                protocol: "TCP".to_owned(),
                app_protocol: p.app_protocol.clone().unwrap_or_default(),
            })
        });
    api::Object::Service(api::Service {
        api_version: String::new(),
        metadata: metadata(&service.metadata),
        spec: api::ServiceSpec {
            service_type: spec.type_.clone().unwrap_or_default(),
            selector: spec.selector.clone().unwrap_or_default(),
            ports: ports.collect(),
            cluster_ip: spec.cluster_ip.clone().unwrap_or_default(),
            cluster_ips: spec.cluster_ips.clone().unwrap_or_default(),
            ip_family_policy: None,
        },
    })
}

/// An EndpointSlice. Absent conditions mean what the API says they mean.
pub fn endpoint_slice(slice: &discovery::EndpointSlice) -> api::Object {
    let endpoint = |e: &discovery::Endpoint| {
        let conditions = e.conditions.as_ref();
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        api::SliceEndpoint {
            addresses: e.addresses.clone(),
            conditions: api::SliceConditions {
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            },
            target_ref: e
                .target_ref
                .as_ref()
                .filter(|t| t.kind.as_deref() == Some("Pod"))
                .map(|t| api::TargetRef {
                    kind: "Pod".to_owned(),
                    namespace: t.namespace.clone().unwrap_or_default(),
                    name: t.name.clone().unwrap_or_default(),
                }),
            node_name: e.node_name.clone().unwrap_or_default(),
            zone: e.zone.clone().unwrap_or_default(),
        }
    };
    let ports = slice.ports.iter().flatten();
    let ports = ports
        .filter(|p| is_tcp(p.protocol.as_ref()))
        .filter_map(|p| {
            Some(api::SlicePort {
                name: p.name.clone().unwrap_or_default(),
                port: p.port.and_then(port)?,
                protocol: "TCP".to_owned(),
                app_protocol: p.app_protocol.clone().unwrap_or_default(),
            })
        });
    let mut own = metadata(&slice.metadata);
    let labels = slice.metadata.labels.as_ref();
    if let Some(service) = labels.and_then(|l| l.get(LABEL_SERVICE_NAME)) {
        own.labels
            .insert(LABEL_SERVICE_NAME.to_owned(), service.clone());
    }
    api::Object::EndpointSlice(api::EndpointSlice {
        api_version: String::new(),
        metadata: own,
        address_type: slice.address_type.clone(),
        endpoints: slice.endpoints.iter().map(endpoint).collect(),
        ports: ports.collect(),
    })
}

/// A Pod. One that has ended has no address any more: Kubernetes gives it to
/// another.
pub fn pod(pod: &core::Pod) -> api::Object {
    let empty = (core::PodSpec::default(), core::PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&empty.0);
    let status = pod.status.as_ref().unwrap_or(&empty.1);
    let mut own = metadata(&pod.metadata);
    own.labels = pod.metadata.labels.clone().unwrap_or_default();
    let annotations = pod.metadata.annotations.iter().flatten();
    let annotations = annotations.filter(|(key, _)| *key == ANNOTATION_INJECT);
    own.annotations = annotations.map(|(k, v)| (k.clone(), v.clone())).collect();
    own.labels
        .insert(LABEL_DEPLOYMENT.to_owned(), workload(&pod.metadata));
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let phase = status.phase.clone().unwrap_or_default();
    let ended = phase == "Succeeded" || phase == "Failed";
    let ips = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| api::PodIp { ip: ip.ip.clone() });
    let ready = status.conditions.iter().flatten();
    let ready = ready
        .filter(|c| c.type_ == "Ready")
        .any(|c| c.status == "True");
    api::Object::Pod(api::Pod {
        api_version: String::new(),
        metadata: own,
        spec: api::PodSpec {
            service_account_name: spec.service_account_name.clone().unwrap_or_default(),
            containers: spec
                .containers
                .iter()
                .chain(sidecars)
                .map(container)
                .collect(),
            node_name: spec.node_name.clone().unwrap_or_default(),
            host_network: spec.host_network.unwrap_or(false),
            ..api::PodSpec::default()
        },
        status: Some(api::PodStatus {
            pod_ip: String::new(),
            pod_ips: if ended { Vec::new() } else { ips.collect() },
            phase,
            ready,
        }),
    })
}

fn container(container: &core::Container) -> api::Container {
    let ports = container.ports.iter().flatten();
    let ports = ports.filter_map(|p| {
        Some(api::ContainerPort {
            name: p.name.clone().unwrap_or_default(),
            container_port: port(p.container_port)?,
            protocol: String::new(),
        })
    });
    api::Container {
        name: container.name.clone(),
        ports: ports.collect(),
        ..api::Container::default()
    }
}

/// What a pod is a replica of, as operators name it: its Deployment rather
/// than the ReplicaSet in between, its CronJob rather than one of the Jobs.
fn workload(meta: &ObjectMeta) -> String {
    let mut owners = meta.owner_references.iter().flatten();
    let owner = owners.find(|o| o.controller == Some(true));
    let Some(owner) = owner else {
        return meta.name.clone().unwrap_or_default();
    };
    let without = |suffix: &str| owner.name.strip_suffix(suffix).map(str::to_owned);
    let made = match owner.kind.as_str() {
        "ReplicaSet" => meta
            .labels
            .as_ref()
            .and_then(|l| without(&format!("-{}", l.get("pod-template-hash")?))),
        "Job" => owner
            .name
            .rsplit_once('-')
            .filter(|(_, n)| is_schedule(n))
            .map(|(name, _)| name.to_owned()),
        _ => None,
    };
    made.unwrap_or_else(|| owner.name.clone())
}

/// A CronJob ends its Jobs' names with the minutes since the epoch.
fn is_schedule(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn owned(kind: &str, owner: &str, labels: serde_json::Value) -> String {
        let meta = json!({"name": "p", "labels": labels, "ownerReferences": [
            {"apiVersion": "v1", "kind": kind, "name": owner, "uid": "u", "controller": true}]});
        workload(&serde_json::from_value(meta).expect("metadata"))
    }

    #[test]
    fn replicas_carry_the_name_that_their_author_gave() {
        let hashed = json!({"pod-template-hash": "6d4cf56db6"});
        assert_eq!(
            owned("ReplicaSet", "web-front-6d4cf56db6", hashed),
            "web-front"
        );
        assert_eq!(
            owned("ReplicaSet", "own-replica-set", json!({})),
            "own-replica-set"
        );
        assert_eq!(owned("StatefulSet", "db", json!({})), "db");
        assert_eq!(owned("Job", "report-29123456", json!({})), "report");
        assert_eq!(owned("Job", "import-2", json!({})), "import-2");
    }

    #[test]
    fn a_pod_that_has_ended_has_no_address() {
        let written = json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "web"}]}]},
            "status": {"phase": "Succeeded", "podIPs": [{"ip": "10.0.0.1"}]}});
        let read: core::Pod = serde_json::from_value(written).expect("a pod");
        let api::Object::Pod(pod) = pod(&read) else {
            panic!("a pod")
        };
        assert!(pod.status.expect("status").pod_ips.is_empty());
        assert_eq!(pod.spec.containers[0].ports[0].name, "web");
    }

    #[test]
    fn an_endpoint_without_conditions_is_ready() {
        let written = json!({"metadata": {"name": "s"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]});
        let read = serde_json::from_value(written).expect("a slice");
        let api::Object::EndpointSlice(slice) = endpoint_slice(&read) else {
            panic!("a slice")
        };
        assert!(slice.endpoints[0].conditions.ready && slice.endpoints[0].conditions.serving);
        assert_eq!(slice.ports.len(), 1);
    }
}
