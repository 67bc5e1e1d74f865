//! `meshctl ca rotate`: another root and issuer, without a restart and without
//! a moment in which somebody's certificate is not trusted.
//!
//! First everybody trusts both roots; then the new issuer signs, and every proxy
//! takes a new certificate; then the old root goes. A step is taken only when
//! every connected proxy has made the one before.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use weft_api::ROOT_NAMESPACE;
use weft_identity::{Authority, Root, TrustBundle, fingerprint, new_root};
use weft_proto::{ProxiesRequest, ProxiesResponse};

use super::install::Progress;
use super::{block_on, client};
use crate::cli::RotateArgs;
use crate::operator::in_cluster;
use crate::output::green;

const ISSUER_LIFE: Duration = Duration::from_secs(365 * 86_400);
const LOOK: Duration = Duration::from_millis(500);
/// What was acknowledged stays so for this long: nothing is on its way any more.
const SETTLED: Duration = Duration::from_secs(3);

struct Rotation {
    client: Client,
    secrets: Api<Secret>,
    progress: Progress,
    patience: Duration,
}

/// An issuer and its root, PEM.
struct New {
    certificate: String,
    key: String,
    root: String,
    root_key: Option<String>,
}

pub fn rotate(args: &RotateArgs) -> anyhow::Result<ExitCode> {
    block_on(async {
        let start = Instant::now();
        let client = client(&args.cluster).await?;
        let rotation = Rotation {
            secrets: Api::namespaced(client.clone(), ROOT_NAMESPACE),
            client,
            progress: Progress::new(),
            patience: Duration::from_secs(args.timeout),
        };
        let proxies = rotation.run(args.ca.as_deref()).await?;
        rotation.progress.done();
        let took = start.elapsed().as_secs();
        println!(
            "{} {proxies} proxies have certificates of the new root after {took} s; the old one is not trusted any more",
            green("done:")
        );
        Ok(ExitCode::SUCCESS)
    })
}

impl Rotation {
    async fn run(&self, ca: Option<&Path>) -> anyhow::Result<usize> {
        let issuer = self
            .secrets
            .get("weft-issuer")
            .await
            .context("the Secret weft-issuer cannot be read")?;
        let old_roots = text(&issuer, "ca.crt")?;
        let old = Authority::from_pem(&text(&issuer, "tls.crt")?, &text(&issuer, "tls.key")?)?;
        let new = match ca {
            Some(folder) => read(folder)?,
            None => make(&old)?,
        };
        let authority = Authority::from_pem(&new.certificate, &new.key)?;
        if authority.trust_domain() != old.trust_domain() {
            bail!(
                "the new issuer is of the trust domain {}, the mesh of {}",
                authority.trust_domain(),
                old.trust_domain()
            );
        }
        let both = format!("{}\n{}", old_roots.trim(), new.root);
        let both_der = roots(&both)?;
        self.progress.step("1 of 3: both roots are to be trusted");
        self.write("weft-issuer", &[("ca.crt", &both)]).await?;
        self.wait(
            "trusts both roots",
            |known| known.roots_der == both_der,
            |_, _| true,
        )
        .await?;
        self.progress.step("2 of 3: the new issuer signs");
        if let Some(root_key) = &new.root_key
            && self.secrets.get_opt("weft-root").await?.is_some()
        {
            self.write(
                "weft-root",
                &[("tls.crt", &new.root), ("tls.key", root_key)],
            )
            .await?;
        }
        self.write(
            "weft-issuer",
            &[("tls.crt", &new.certificate), ("tls.key", &new.key)],
        )
        .await?;
        let issuer = fingerprint(authority.certificate());
        let signs = |known: &ProxiesResponse| fingerprint(&known.intermediate_der) == issuer;
        self.wait("has a certificate of the new issuer", signs, |_, theirs| {
            theirs == issuer
        })
        .await?;
        self.progress.step("3 of 3: the old root goes");
        self.write("weft-issuer", &[("ca.crt", &new.root)]).await?;
        let only = roots(&new.root)?;
        self.wait(
            "trusts the new root only",
            |known| known.roots_der == only,
            |_, _| true,
        )
        .await
    }

    async fn write(&self, name: &str, data: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut secret = self.secrets.get(name).await?;
        let values = secret.data.get_or_insert_default();
        for (key, value) in data {
            values.insert((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
        }
        self.secrets
            .replace(name, &PostParams::default(), &secret)
            .await?;
        Ok(())
    }

    /// Until every replica says so and every connected proxy has followed.
    async fn wait(
        &self,
        what: &str,
        replica: impl Fn(&ProxiesResponse) -> bool,
        proxy: impl Fn(&str, &str) -> bool,
    ) -> anyhow::Result<usize> {
        let start = Instant::now();
        let mut since = None;
        loop {
            let (behind, proxies) = self.behind(&replica, &proxy).await?;
            if behind.is_empty() {
                let since = since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SETTLED {
                    return Ok(proxies);
                }
            } else {
                since = None;
            }
            self.progress.step(&format!(
                "waiting until each {what}: {} do not yet",
                behind.len()
            ));
            if start.elapsed() > self.patience {
                bail!(
                    "after {:?} not each {what}: {}; nothing is broken, both roots are trusted: mend or delete these, then run the command again",
                    self.patience,
                    behind.join(", ")
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Who has not followed yet, and how many proxies there are.
    async fn behind(
        &self,
        replica: &impl Fn(&ProxiesResponse) -> bool,
        proxy: &impl Fn(&str, &str) -> bool,
    ) -> anyhow::Result<(Vec<String>, usize)> {
        let mut behind = Vec::new();
        let mut proxies = 0;
        for pod in super::forward::control_planes(&self.client).await? {
            let mut operator = in_cluster(&self.client, &pod).await?;
            let known = operator.proxies(ProxiesRequest {}).await?.into_inner();
            if !replica(&known) {
                behind.push(format!("control plane {pod}"));
            }
            for p in known.proxies.iter().filter(|p| p.connected) {
                proxies += 1;
                if p.acknowledged != p.sent || !proxy(&p.pod, &p.certificate_issuer) {
                    behind.push(format!("{}/{}", p.namespace, p.pod));
                }
            }
        }
        Ok((behind, proxies))
    }
}

fn roots(pem: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    Ok(TrustBundle::from_pem(pem)?
        .roots()
        .iter()
        .map(|r| r.to_vec())
        .collect())
}

fn text(secret: &Secret, key: &str) -> anyhow::Result<String> {
    let value = secret.data.as_ref().and_then(|d| d.get(key));
    let value = value.with_context(|| format!("the Secret weft-issuer has no {key}"))?;
    Ok(String::from_utf8(value.0.clone())?)
}

fn read(folder: &Path) -> anyhow::Result<New> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    Ok(New {
        certificate: read("tls.crt")?,
        key: read("tls.key")?,
        root: read("ca.crt")?,
        root_key: None,
    })
}

fn make(old: &Authority) -> anyhow::Result<New> {
    let Root {
        certificate_pem,
        key_pem,
    } = new_root("Weft root")?;
    let root = Root {
        certificate_pem: certificate_pem.clone(),
        key_pem: key_pem.clone(),
    };
    let (certificate, key) = root.sign_intermediate(old.trust_domain(), ISSUER_LIFE)?;
    Ok(New {
        certificate,
        key,
        root: certificate_pem,
        root_key: Some(key_pem),
    })
}
