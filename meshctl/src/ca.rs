//! `meshctl ca`.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use serde_json::json;
use weft_identity::{Root, TrustDomain, certificate_dates, new_root};
use weft_proto::ProxiesRequest;

use crate::cli::{CaCommand, Format, MeshArgs};
use crate::cluster::rotate::rotate;
use crate::operator::ask;
use crate::output::{print, table};

pub fn run(command: CaCommand) -> anyhow::Result<ExitCode> {
    match command {
        CaCommand::Init {
            folder,
            trust_domain,
            root,
            days,
            output,
        } => {
            init(&folder, &trust_domain, root.as_deref(), days, output)?;
        }
        CaCommand::Show(mesh) => show(&mesh)?,
        CaCommand::Rotate(args) => return rotate(&args),
    }
    Ok(ExitCode::SUCCESS)
}

/// Nobody but the owner may read a key.
fn write_key(path: &Path, pem: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{} cannot be made", path.display()))?;
    file.write_all(pem.as_bytes())?;
    Ok(())
}

fn init(
    folder: &Path,
    trust_domain: &str,
    root: Option<&Path>,
    days: u32,
    output: Format,
) -> anyhow::Result<()> {
    let trust_domain: TrustDomain = trust_domain.parse()?;
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    if folder.join("tls.key").exists() {
        bail!(
            "{} holds an issuer already: choose another --folder",
            folder.display()
        );
    }
    let root = match root {
        Some(root) => Root {
            certificate_pem: fs::read_to_string(root.join("root.crt")).context("root.crt")?,
            key_pem: fs::read_to_string(root.join("root.key")).context("root.key")?,
        },
        None => {
            let root = new_root("Weft root")?;
            write_key(&folder.join("root.key"), &root.key_pem)?;
            fs::write(folder.join("root.crt"), &root.certificate_pem)?;
            root
        }
    };
    let (certificate, key) =
        root.sign_intermediate(&trust_domain, Duration::from_secs(u64::from(days) * 86_400))?;
    write_key(&folder.join("tls.key"), &key)?;
    fs::write(folder.join("tls.crt"), certificate)?;
    fs::write(folder.join("ca.crt"), &root.certificate_pem)?;
    let value = json!({"folder": folder, "trustDomain": trust_domain.as_str()});
    print(output, &value, || {
        format!(
            "The issuer of {trust_domain} is in {0}.\nTake {0}/root.key off this machine: it is needed only for the next issuer.\nNext: meshctl local up --ca {0} --trust-domain {trust_domain} -f PATH",
            folder.display()
        )
    })
}

fn show(mesh: &MeshArgs) -> anyhow::Result<()> {
    let known = ask(mesh, |mut operator| async move {
        Ok(operator.proxies(ProxiesRequest {}).await?.into_inner())
    })?;
    let mut certificates = vec![("issuer", known.intermediate_der.clone())];
    certificates.extend(known.roots_der.iter().map(|der| ("root", der.clone())));
    let mut rows = Vec::new();
    for (what, der) in certificates {
        let (_, end) = certificate_dates(&der)?;
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        rows.push(json!({"what": what, "daysLeft": left.as_secs() / 86_400}));
    }
    let value = json!({"trustDomain": known.trust_domain, "certificates": rows});
    print(mesh.output, &value, || {
        let cells = rows.iter().map(|r| {
            let text = |k: &str| {
                r.get(k)
                    .map(|v| v.to_string().replace('"', ""))
                    .unwrap_or_default()
            };
            vec![text("what"), text("daysLeft")]
        });
        format!(
            "trust domain {}\n{}",
            known.trust_domain,
            table(&["CERTIFICATE", "DAYS LEFT"], cells)
        )
    })
}
