//! Who is connected, what it runs, and what each service account uses.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use weft_proto::ProxyState;

/// Destinations remembered for a service account.
const MAX_REMEMBERED: usize = 256;

/// All proxies.
#[derive(Default)]
pub struct ProxyStore {
    proxies: Mutex<BTreeMap<(String, String), ProxyState>>,
    used: Mutex<HashMap<String, HashSet<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProxyStore {
    /// A proxy has connected.
    pub fn connected(&self, state: ProxyState) {
        lock(&self.proxies).insert((state.namespace.clone(), state.pod.clone()), state);
    }

    /// Something is known anew of a proxy.
    pub fn change(&self, namespace: &str, pod: &str, change: impl FnOnce(&mut ProxyState)) {
        let key = (namespace.to_owned(), pod.to_owned());
        if let Some(state) = lock(&self.proxies).get_mut(&key) {
            change(state);
        }
    }

    /// A proxy has gone; its pod may come back.
    pub fn disconnected(&self, namespace: &str, pod: &str) {
        self.change(namespace, pod, |state| state.connected = false);
    }

    /// Forgets proxies whose pod is gone.
    pub fn retain(&self, exists: impl Fn(&str, &str) -> bool) {
        lock(&self.proxies)
            .retain(|(namespace, pod), state| state.connected || exists(namespace, pod));
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<ProxyState> {
        lock(&self.proxies).values().cloned().collect()
    }

    /// Remembers that an identity uses these destinations.
    pub fn remember<'a>(&self, identity: &str, names: impl Iterator<Item = &'a String>) {
        let mut used = lock(&self.used);
        let known = used.entry(identity.to_owned()).or_default();
        for name in names.filter(|n| n.starts_with("dest/")) {
            if known.len() < MAX_REMEMBERED {
                known.insert(name.clone());
            }
        }
    }

    /// What other replicas of an identity use: sent ahead, so that the first
    /// request waits for nothing.
    pub fn remembered(&self, identity: &str) -> Vec<String> {
        lock(&self.used)
            .get(identity)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}
