//! The plugin on the node: its program, and its place at the end of the chain,
//! put back whenever somebody rewrites the configuration.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use serde_json::{Value, json};
use weft_cni_init::plugin::{PLUGIN, chain};

use crate::Args;

const LOOK: Duration = Duration::from_secs(1);
/// The DaemonSet that this runs in, and its namespace.
const DAEMON_SET: (&str, &str) = ("weft-cni", "weft-cni");

/// Keeps the plugin installed until the process ends.
pub async fn keep(args: &Args, socket: &Path) {
    let mut told = String::new();
    let mut installed = None;
    loop {
        match install(args, socket, &mut installed) {
            Ok(Some(path)) => {
                tracing::info!(path = %path.display(), "the plugin is in the node's configuration");
                told.clear();
            }
            Ok(None) => told.clear(),
            Err(error) => {
                let text = format!("{error:#}");
                if told != text {
                    tracing::warn!("the plugin is not installed yet: {text}");
                    told = text;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The configuration that runtimes use: the first by name.
fn configuration(folder: &Path) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|f| {
        f.extension()
            .is_some_and(|e| e == "conflist" || e == "conf" || e == "json")
    });
    files.sort();
    files
        .into_iter()
        .next()
        .context("the node has no CNI configuration yet")
}

/// By which a file is known again without reading it: inode, length, change.
type Stamp = (u64, u64, i64, i64);

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

/// `Some`: something had to be done. `installed` is the program as it was left.
fn install(
    args: &Args,
    socket: &Path,
    installed: &mut Option<Stamp>,
) -> anyhow::Result<Option<PathBuf>> {
    let program = args.programs.join(PLUGIN);
    if installed.is_none() || stamp(&program) != *installed {
        let wanted = fs::read(&args.plugin).with_context(|| args.plugin.display().to_string())?;
        if fs::read(&program).ok().as_ref() != Some(&wanted) {
            replace(&program, &wanted, 0o755)?;
        }
        *installed = stamp(&program);
    }
    let path = configuration(&args.configurations)?;
    let entry =
        json!({"type": PLUGIN, "socket": socket, "excludeNamespaces": args.exclude_namespaces});
    Ok(rewrite(&path, Some(&entry))?.then_some(path))
}

fn rewrite(path: &Path, entry: Option<&Value>) -> anyhow::Result<bool> {
    let place = path.display().to_string();
    let text = fs::read_to_string(path).context(place.clone())?;
    let Some(changed) = chain(&text, entry).context(place)? else {
        return Ok(false);
    };
    let text = format!("{changed:#}\n");
    if path.extension().is_some_and(|e| e == "conflist") {
        replace(path, text.as_bytes(), 0o600)?;
    } else {
        // A list has another ending, and must come first.
        replace(&path.with_extension("conflist"), text.as_bytes(), 0o600)?;
        fs::rename(path, path.with_extension("before-weft"))?;
    }
    Ok(true)
}

/// Whole, or not at all.
fn replace(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let part = path.with_extension("weft-part");
    let mut file = fs::File::create(&part).with_context(|| part.display().to_string())?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&part, path).with_context(|| path.display().to_string())
}

/// Whether the DaemonSet is gone or going, rather than this one pod.
pub async fn is_uninstalled(client: &Client) -> bool {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), DAEMON_SET.0);
    match api.get_opt(DAEMON_SET.1).await {
        Ok(None) => true,
        Ok(Some(found)) => found.metadata.deletion_timestamp.is_some(),
        Err(kube::Error::Api(status)) => status.code == 403 || status.code == 401,
        // An API server that is away is no reason to let pods out.
        Err(_) => false,
    }
}

/// Takes the plugin out of the chain, and its program away.
pub fn remove(args: &Args) {
    let done = configuration(&args.configurations).and_then(|path| {
        rewrite(&path, None)?;
        let before = path.with_extension("before-weft");
        if before.exists() {
            fs::rename(&before, path.with_extension("conf"))?;
            fs::remove_file(&path)?;
        }
        Ok(())
    });
    if let Err(error) = done {
        tracing::error!("the configuration could not be put back: {error:#}");
        // Without its chain entry the program is not called; with it, it must stay.
        return;
    }
    let _ = fs::remove_file(args.programs.join(PLUGIN));
}
