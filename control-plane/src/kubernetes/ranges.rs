//! The cluster's address ranges, within which an unknown address is refused
//! rather than guessed: those of the nodes' pods and of Services.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::watcher::{Config, Event, Result};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::State;

type Ranges = BTreeMap<String, Vec<String>>;

/// Keeps the index's ranges current until the process ends. Ranges that were
/// given by hand are kept instead.
pub async fn follow_ranges(client: Client, state: Arc<State>) {
    if state.ranges_given {
        return;
    }
    let of_node = |node: &Node| {
        let spec = node.spec.as_ref();
        spec.and_then(|s| s.pod_cidrs.clone()).unwrap_or_default()
    };
    let of_services = |range: &ServiceCIDR| {
        let spec = range.spec.as_ref();
        spec.and_then(|s| s.cidrs.clone()).unwrap_or_default()
    };
    let (mut pods, mut services) = (Ranges::new(), Ranges::new());
    let mut nodes = stream::<Node>(&client);
    let mut cidrs = stream::<ServiceCIDR>(&client);
    loop {
        tokio::select! {
            Some(event) = nodes.next() => take(&mut pods, event, of_node),
            // Clusters before 1.33 do not have this kind: their Services are known by address.
            Some(event) = cidrs.next() => take(&mut services, event, of_services),
            else => return,
        }
        let all: BTreeSet<&String> = pods.values().chain(services.values()).flatten().collect();
        let all = all.into_iter().cloned().collect();
        if state.index().set_ranges(all) {
            state.changes.send_modify(|n| *n += 1);
        }
    }
}

fn stream<K>(client: &Client) -> BoxStream<'static, Result<Event<K>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watcher(Api::<K>::all(client.clone()), Config::default())
        .default_backoff()
        .boxed()
}

fn take<K: Resource>(known: &mut Ranges, event: Result<Event<K>>, of: impl Fn(&K) -> Vec<String>) {
    let name = |object: &K| object.meta().name.clone().unwrap_or_default();
    match event {
        // A node that is gone while a list is read anew only leaves its range behind.
        Ok(Event::Apply(object) | Event::InitApply(object)) => {
            known.insert(name(&object), of(&object));
        }
        Ok(Event::Delete(object)) => {
            known.remove(&name(&object));
        }
        Ok(Event::Init | Event::InitDone) | Err(_) => {}
    }
}
