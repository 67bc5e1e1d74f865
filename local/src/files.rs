//! Objects as files that the control plane watches.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use weft_api::{Object, ObjectKey};

/// The watched folder. Files appear whole, and only when they change.
pub struct ManifestFolder {
    folder: PathBuf,
    written: BTreeMap<ObjectKey, String>,
}

impl ManifestFolder {
    /// Makes the folder.
    pub fn new(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self {
            folder,
            written: BTreeMap::new(),
        })
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.folder
            .join(format!("{}_{}_{}.json", key.kind, key.namespace, key.name))
    }

    /// Makes the folder hold exactly these.
    pub fn write(&mut self, objects: &[Object]) -> io::Result<()> {
        let mut wanted = BTreeMap::new();
        for object in objects {
            wanted.insert(object.key(), serde_json::to_string(object)?);
        }
        for (key, text) in &wanted {
            if self.written.get(key) != Some(text) {
                let path = self.path(key);
                let new = path.with_extension("new");
                fs::write(&new, text)?;
                fs::rename(&new, &path)?;
            }
        }
        for key in self.written.keys().filter(|k| !wanted.contains_key(*k)) {
            match fs::remove_file(self.path(key)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.written = wanted;
        Ok(())
    }
}
