//! A watched folder of manifests: what `kubectl` would have applied, and what
//! kubelet and the endpoint controller would have written.
//!
//! A file that cannot be used leaves what it said before in force.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use weft_api::{Object, ObjectKey, load_path};

use crate::State;

/// Changes that come together are taken together.
const SETTLE: Duration = Duration::from_millis(20);
/// Looks even if nobody said that something changed.
const LOOK: Duration = Duration::from_secs(5);

#[derive(PartialEq)]
struct Stamp(Option<SystemTime>, u64);

struct File {
    stamp: Stamp,
    objects: Vec<Object>,
}

/// The folder, as it was read last.
pub struct Directory {
    folder: PathBuf,
    files: BTreeMap<PathBuf, File>,
    changed: Arc<Notify>,
    _watcher: notify::RecommendedWatcher,
}

impl Directory {
    /// Starts to watch.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        let mut watcher = notify::recommended_watcher(move |_| notify.notify_one())?;
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(Self {
            folder: folder.to_owned(),
            files: BTreeMap::new(),
            changed,
            _watcher: watcher,
        })
    }

    /// Follows the folder until the process ends.
    pub async fn watch(mut self, state: Arc<State>) {
        loop {
            let _ = tokio::time::timeout(LOOK, self.changed.notified()).await;
            tokio::time::sleep(SETTLE).await;
            self.refresh(&state);
        }
    }

    /// Reads what changed, and brings it into the index.
    pub fn refresh(&mut self, state: &State) {
        let found = self.list();
        let mut changed = false;
        self.files.retain(|path, _| {
            let keep = found.contains_key(path);
            changed |= !keep;
            keep
        });
        for (path, stamp) in found {
            if self.files.get(&path).is_some_and(|f| f.stamp == stamp) {
                continue;
            }
            changed = true;
            match load_path(&path) {
                Ok(objects) => {
                    self.files.insert(path, File { stamp, objects });
                }
                Err(errors) => {
                    for error in errors {
                        tracing::error!("{error}; what was said before stays in force");
                    }
                    let file = self.files.entry(path).or_insert(File {
                        stamp: Stamp(None, 0),
                        objects: vec![],
                    });
                    file.stamp = stamp;
                }
            }
        }
        if changed {
            let objects = self.files.values().flat_map(|f| &f.objects);
            let all: BTreeMap<ObjectKey, Object> = objects.map(|o| (o.key(), o.clone())).collect();
            if state.index().replace(all) {
                state.changes.send_modify(|n| *n += 1);
            }
        }
    }

    fn list(&self) -> BTreeMap<PathBuf, Stamp> {
        let entries = std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter(|e| {
                e.path()
                    .extension()
                    .is_some_and(|x| x == "json" || x == "yaml" || x == "yml")
            })
            .filter_map(|e| {
                let meta = e.metadata().ok()?;
                Some((e.path(), Stamp(meta.modified().ok(), meta.len())))
            })
            .collect()
    }
}
