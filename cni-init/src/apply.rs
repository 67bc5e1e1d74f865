//! Setting the rules, reading them back, and entering the namespace they are for.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

use crate::rules::{CaptureRules, Family};

/// Why capture does not stand.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A program is not installed.
    #[error("{0} is not on this machine: install the package `iptables`")]
    NoProgram(&'static str),
    /// A program failed.
    #[error("{program} failed: {message}{}", mend(message))]
    Failed {
        /// Which program.
        program: &'static str,
        /// Its words.
        message: String,
    },
    /// The rules read back are others than those that were set.
    #[error("the redirect rules are not in place: {}", .0.join("; "))]
    Differs(Vec<String>),
    /// The namespace cannot be entered.
    #[error("the network namespace {path} cannot be entered: {why}")]
    Namespace {
        /// Its file.
        path: String,
        /// The system's words.
        why: std::io::Error,
    },
}

fn mend(message: &str) -> &'static str {
    if message.contains("Permission denied") || message.contains("Operation not permitted") {
        "; run as root, or give the capabilities NET_ADMIN and NET_RAW"
    } else if message.contains("does not exist")
        || message.contains("No such file")
        || message.contains("not supported")
        || message.contains("No chain/target/match")
    {
        "; the kernel lacks netfilter NAT: load nf_nat, xt_REDIRECT and xt_owner"
    } else {
        ""
    }
}

/// The families that this kernel and namespace have.
fn families() -> &'static [Family] {
    if Path::new("/proc/net/if_inet6").exists() {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    }
}

/// What sets the rules: `iptables-restore` where it is installed, so that an
/// operator sees them with the tools of the house; the kernel itself otherwise.
fn has_iptables() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = Family::V4.restore_program();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

fn nft(error: std::io::Error) -> CaptureError {
    CaptureError::Failed {
        program: "nftables",
        message: error.to_string(),
    }
}

/// Sets the rules in the current network namespace and reads them back. If
/// one family fails, none is left set.
pub fn apply(rules: &CaptureRules) -> Result<(), CaptureError> {
    for family in families() {
        let set = if has_iptables() {
            read(*family)
                .and_then(|existing| restore(*family, &rules.transaction(*family, &existing)))
        } else {
            crate::nft::apply(rules, *family).map_err(nft)
        };
        if let Err(error) = set {
            // What went in for the other family must not stand alone; the
            // error that is told is the first.
            let _ = remove();
            return Err(error);
        }
    }
    verify(rules)
}

/// Checks that exactly these rules are set.
pub fn verify(rules: &CaptureRules) -> Result<(), CaptureError> {
    for family in families() {
        let differences = if has_iptables() {
            rules.differences(*family, &read(*family)?)
        } else {
            crate::nft::differences(rules, *family).map_err(nft)?
        };
        if !differences.is_empty() {
            return Err(CaptureError::Differs(differences));
        }
    }
    Ok(())
}

/// Takes the rules away; does nothing where there are none.
pub fn remove() -> Result<(), CaptureError> {
    for family in families() {
        if !has_iptables() {
            crate::nft::remove(*family).map_err(nft)?;
        } else if let Some(text) = CaptureRules::removal(&read(*family)?) {
            restore(*family, &text)?;
        }
    }
    Ok(())
}

fn read(family: Family) -> Result<String, CaptureError> {
    run(family.save_program(), &["-t", "nat"], "")
}

fn restore(family: Family, text: &str) -> Result<(), CaptureError> {
    run(
        family.restore_program(),
        &["--noflush", "--wait", "5"],
        text,
    )
    .map(|_| ())
}

fn run(program: &'static str, args: &[&str], input: &str) -> Result<String, CaptureError> {
    let failed = |message: String| CaptureError::Failed { program, message };
    let mut child = Command::new(program)
        .args(args)
        // The nft variant needs no lock file; the legacy one must find a
        // writable place for it on a read-only root.
        .env("XTABLES_LOCKFILE", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => CaptureError::NoProgram(program),
            _ => failed(e.to_string()),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .map_err(|e| failed(e.to_string()))?;
    }
    let output = child
        .wait_with_output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr)
            .trim()
            .replace('\n', " ");
        return Err(failed(message));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Moves the calling thread into the network namespace of a file such as
/// `/proc/PID/ns/net` or `/run/netns/NAME`.
pub fn enter_network_namespace(path: &Path) -> Result<(), CaptureError> {
    let bad = |why: std::io::Error| CaptureError::Namespace {
        path: path.display().to_string(),
        why,
    };
    let file = std::fs::File::open(path).map_err(bad)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| bad(e.into()))
}
