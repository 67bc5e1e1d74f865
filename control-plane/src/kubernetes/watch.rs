//! Watches: what the API server has, into the index.
//!
//! A watch that breaks is taken up again, and what it said stays in force
//! meanwhile. A list that has to be read anew replaces the old one as a whole.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1 as core;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use weft_api::{Metadata, Object, ObjectKey};

use super::convert;
use crate::State;

/// Kinds that others define, and that are read as strictly as manifests are.
pub const CUSTOM: [(&str, &str, &str, &str); 6] = [
    ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
    ("gateway.networking.k8s.io", "v1", "GRPCRoute", "grpcroutes"),
    (
        "gateway.networking.k8s.io",
        "v1",
        "ReferenceGrant",
        "referencegrants",
    ),
    (
        "gateway.networking.x-k8s.io",
        "v1alpha1",
        "XMesh",
        "xmeshes",
    ),
    (
        "weft.dev",
        "v1alpha1",
        "AuthorizationPolicy",
        "authorizationpolicies",
    ),
    (
        "weft.dev",
        "v1alpha1",
        "AuthenticationPolicy",
        "authenticationpolicies",
    ),
];
/// Kubernetes' own kinds that the index is made from.
const OWN: [&str; 4] = ["Service", "EndpointSlice", "Pod", "Namespace"];

/// One of the custom kinds by its name.
pub fn resource(kind: &str) -> Option<ApiResource> {
    let (group, version, kind, plural) = CUSTOM.iter().find(|(_, _, k, _)| *k == kind)?;
    Some(ApiResource {
        group: (*group).to_owned(),
        version: (*version).to_owned(),
        api_version: format!("{group}/{version}"),
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
    })
}

/// An object with a status of its own, as the API server has it.
#[derive(Debug, Clone)]
pub struct Written {
    /// As it was read.
    pub object: Arc<DynamicObject>,
    /// Why it is not in force.
    pub refused: Option<String>,
}

/// What is known of the objects that carry a status.
pub type WrittenObjects = BTreeMap<ObjectKey, Written>;

/// One thing that a watch said.
enum Said {
    Apply(Box<Read>),
    Delete(ObjectKey),
    /// All there is of a kind.
    All(Vec<Read>),
}

struct Read {
    key: ObjectKey,
    /// `None`: it does not concern the mesh.
    object: Option<Object>,
    written: Option<Written>,
}

type Feed = mpsc::UnboundedSender<(&'static str, Said)>;

/// Starts all watches, and brings what they say into the index until the
/// process ends.
pub async fn follow(client: Client, state: Arc<State>) {
    let (feed, mut said) = mpsc::unbounded_channel();
    let all = watcher::Config::default();
    spawn_typed(&client, &feed, "Service", convert::service);
    spawn_typed(&client, &feed, "EndpointSlice", convert::endpoint_slice);
    spawn_typed(&client, &feed, "Pod", convert::pod);
    let namespaces: Api<PartialObjectMeta<core::Namespace>> = Api::all(client.clone());
    let namespaces = watch(namespaces, all.clone());
    tokio::spawn(pump(
        "Namespace",
        namespaces.default_backoff().boxed(),
        feed.clone(),
        namespace,
    ));
    for (_, _, kind, _) in CUSTOM {
        let Some(resource) = resource(kind) else {
            continue;
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let stream = watch(api, all.clone()).default_backoff().boxed();
        tokio::spawn(pump(kind, stream, feed.clone(), move |object| {
            custom(kind, object)
        }));
    }
    tokio::spawn(super::ranges::follow_ranges(client, state.clone()));
    let mut known = Known::default();
    while let Some(first) = said.recv().await {
        let mut batch = vec![first];
        while let Ok(more) = said.try_recv() {
            batch.push(more);
        }
        for (kind, said) in batch {
            known.take(kind, said);
        }
        known.publish(&state);
    }
}

fn spawn_typed<K>(client: &Client, feed: &Feed, kind: &'static str, read: fn(&K) -> Object)
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let api: Api<K> = Api::all(client.clone());
    let stream = watch(api, watcher::Config::default())
        .default_backoff()
        .boxed();
    let read = move |object: K| {
        let object = read(&object);
        Read {
            key: object.key(),
            object: Some(object),
            written: None,
        }
    };
    tokio::spawn(pump(kind, stream, feed.clone(), read));
}

/// Carries what one watch says to the feed.
async fn pump<K>(
    kind: &'static str,
    mut stream: futures_util::stream::BoxStream<'static, watcher::Result<Event<K>>>,
    feed: Feed,
    read: impl Fn(K) -> Read,
) {
    let mut listing = Vec::new();
    let mut missing = false;
    while let Some(event) = stream.next().await {
        let said = match event {
            Ok(Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listing.push(read(object));
                continue;
            }
            Ok(Event::InitDone) => {
                missing = false;
                Said::All(std::mem::take(&mut listing))
            }
            Ok(Event::Apply(object)) => Said::Apply(Box::new(read(object))),
            Ok(Event::Delete(object)) => Said::Delete(read(object).key),
            Err(error) => {
                if is_missing(&error) {
                    if std::mem::replace(&mut missing, true) {
                        continue;
                    }
                    tracing::warn!(
                        kind,
                        "the cluster does not have this kind: apply its CustomResourceDefinition; `meshctl install` does"
                    );
                    Said::All(Vec::new())
                } else {
                    tracing::warn!(kind, %error, "the API server is away; what it said stays in force");
                    continue;
                }
            }
        };
        if feed.send((kind, said)).is_err() {
            return;
        }
    }
}

/// Whether the kind itself is not there, rather than the API server.
fn is_missing(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) =
        error
    else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn namespace(namespace: PartialObjectMeta<core::Namespace>) -> Read {
    let name = namespace.metadata.name.unwrap_or_default();
    let metadata = Metadata {
        name,
        labels: namespace.metadata.labels.unwrap_or_default(),
        deletion_timestamp: convert::time(namespace.metadata.deletion_timestamp.as_ref()),
        ..Metadata::default()
    };
    let object = Object::Namespace(weft_api::Namespace {
        api_version: String::new(),
        metadata,
    });
    Read {
        key: object.key(),
        object: Some(object),
        written: None,
    }
}

/// Read strictly; what cannot be used is told in the object's status.
fn custom(kind: &'static str, object: DynamicObject) -> Read {
    let key = ObjectKey {
        kind: kind.to_owned(),
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    };
    let written = |refused| {
        Some(Written {
            object: Arc::new(object.clone()),
            refused,
        })
    };
    if kind == "XMesh" {
        return Read {
            key,
            object: None,
            written: written(None),
        };
    }
    let document = serde_json::to_value(&object).unwrap_or_default();
    match weft_api::parse_live(kind, document) {
        Ok(Some(parsed)) => Read {
            key,
            object: Some(parsed),
            written: written(None),
        },
        // A route of gateways only is somebody else's.
        Ok(None) => Read {
            key,
            object: None,
            written: None,
        },
        Err(problems) => {
            let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Read {
                key,
                object: None,
                written: written(Some(told.join("; "))),
            }
        }
    }
}

/// What the watches have said and the index has not taken yet, and the names of
/// all there is.
#[derive(Default)]
struct Known {
    keys: HashMap<&'static str, HashSet<ObjectKey>>,
    changes: BTreeMap<ObjectKey, Option<Object>>,
    written: WrittenObjects,
    written_changed: bool,
}

impl Known {
    fn take(&mut self, kind: &'static str, said: Said) {
        match said {
            Said::Apply(read) => self.put(kind, *read),
            Said::Delete(key) => self.remove(kind, &key),
            Said::All(reads) => {
                let there: HashSet<ObjectKey> = reads.iter().map(|r| r.key.clone()).collect();
                let known = self.keys.entry(kind).or_default();
                let gone: Vec<ObjectKey> = known.difference(&there).cloned().collect();
                gone.iter().for_each(|key| self.remove(kind, key));
                reads.into_iter().for_each(|read| self.put(kind, read));
            }
        }
    }

    fn remove(&mut self, kind: &'static str, key: &ObjectKey) {
        self.keys.entry(kind).or_default().remove(key);
        self.changes.insert(key.clone(), None);
        self.written_changed |= self.written.remove(key).is_some();
    }

    /// What cannot be used leaves what it said before in force.
    fn put(&mut self, kind: &'static str, read: Read) {
        self.keys.entry(kind).or_default().insert(read.key.clone());
        let refused = read.written.as_ref().is_some_and(|w| w.refused.is_some());
        if !refused {
            self.changes.insert(read.key.clone(), read.object);
        }
        self.written_changed |= match read.written {
            Some(written) => {
                self.written.insert(read.key, written);
                true
            }
            None => self.written.remove(&read.key).is_some(),
        };
    }

    /// Nothing is said before everything was listed once: half of a cluster
    /// would look like a cluster without the other half.
    fn publish(&mut self, state: &State) {
        let mut kinds = OWN.iter().chain(CUSTOM.iter().map(|(_, _, kind, _)| kind));
        if !kinds.all(|kind| self.keys.contains_key(kind)) {
            return;
        }
        let written_changed = std::mem::take(&mut self.written_changed);
        if written_changed {
            state.written.send_replace(Arc::new(self.written.clone()));
        }
        let changed = state.index().change(std::mem::take(&mut self.changes));
        if changed || written_changed {
            state.changes.send_modify(|n| *n += 1);
        }
        state
            .ready
            .send_if_modified(|ready| !std::mem::replace(ready, true));
    }
}
