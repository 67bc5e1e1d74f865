//! `meshctl install`, `upgrade` and `uninstall`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use weft_api::{LABEL_INJECTED, ROOT_NAMESPACE};
use weft_identity::{Authority, TrustDomain, new_root};

use super::apply::{Objects, describe};
use super::chart::{Values, crds};
use super::{block_on, client};
use crate::cli::{InstallArgs, UninstallArgs};
use crate::output::green;

const WAIT: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(200);
const ISSUER_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// The oldest Kubernetes that the webhook's match conditions work in by default.
const OLDEST: u32 = 28;

/// Installs the mesh or brings it up to date, and waits until it works.
pub fn install(args: &InstallArgs, upgrade: bool) -> anyhow::Result<ExitCode> {
    if args.print {
        let values = Values::new(&args.values, &args.set)?;
        for object in crds()?.into_iter().chain(values.render()?) {
            println!("---\n{}", serde_saphyr::to_string(&object)?.trim_end());
        }
        return Ok(ExitCode::SUCCESS);
    }
    block_on(run(args, upgrade))
}

async fn run(args: &InstallArgs, upgrade: bool) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let client = client(&args.cluster).await?;
    let progress = Progress::new();
    progress.step("looking at the cluster");
    let mut values = Values::new(&args.values, &args.set)?;
    let minor = check_version(&client).await?;
    suit_version(&mut values, minor)?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let there = namespaces.get_opt(ROOT_NAMESPACE).await?.is_some();
    if upgrade && !there {
        bail!("there is no mesh to upgrade: use `meshctl install`");
    }
    let mut objects = Objects::new(client.clone());
    objects.apply(&namespace()).await?;
    progress.step("the certificate authority");
    let trust_domain =
        ensure_issuer(&client, args.ca.as_deref(), &values.text("trustDomain")?).await?;
    values.set("trustDomain", Value::from(trust_domain.as_str()))?;
    progress.step("kinds");
    for crd in crds()? {
        objects.apply(&crd).await?;
    }
    wait_established(&client).await?;
    let rendered = values.render()?;
    for object in &rendered {
        progress.step(&describe(object));
        objects.apply(object).await?;
    }
    for name in ["weft-control-plane", "weft-injector"] {
        wait_rollout(&client, name, &progress).await?;
    }
    wait_replaced(&client, &progress).await?;
    wait_webhook(&client, &progress).await?;
    if values.text("cni.enabled")? == "true" {
        wait_daemon_set(&client, &progress).await?;
    }
    // Nobody makes pods that need it any more.
    for object in unwanted(&rendered)? {
        if objects.delete(&object).await? {
            progress.step(&format!("{} goes", describe(&object)));
        }
    }
    progress.done();
    let took = start.elapsed().as_secs_f64();
    println!(
        "{} Weft {} is ready after {took:.1} s (trust domain {trust_domain})",
        green("done:"),
        env!("CARGO_PKG_VERSION")
    );
    if !has_gateway_api(&client).await {
        println!(
            "routes need the Gateway API's kinds, which this cluster does not have yet: https://gateway-api.sigs.k8s.io/guides/getting-started"
        );
    }
    println!(
        "next: kubectl label namespace NAME weft.dev/injection=enabled, then restart what runs there; meshctl check"
    );
    Ok(ExitCode::SUCCESS)
}

/// What the chart could have put there and was not chosen: an earlier choice's.
fn unwanted(rendered: &[Value]) -> anyhow::Result<Vec<Value>> {
    let id = |o: &Value| {
        ["/kind", "/metadata/namespace", "/metadata/name"].map(|p| o.pointer(p).cloned())
    };
    let mut all = everything()?;
    all.retain(|o| !rendered.iter().any(|r| id(r) == id(o)));
    // What needs others goes before them.
    all.reverse();
    Ok(all)
}

/// Every object that the chart can make.
fn everything() -> anyhow::Result<Vec<Value>> {
    let set = ["controlPlane.evictUnmeshed=true", "cni.enabled=true"].map(str::to_owned);
    Values::new(&[] as &[&Path], &set)?.render()
}

/// What the machine shows while it waits.
pub struct Progress(ProgressBar);

impl Progress {
    /// Shown where people look, and nowhere else.
    pub fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::default_spinner());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Says what is being done.
    pub fn step(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }

    /// Takes the line away.
    pub fn done(&self) {
        self.0.finish_and_clear();
    }
}

fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ROOT_NAMESPACE, "labels": {
        "app.kubernetes.io/part-of": "weft",
        "pod-security.kubernetes.io/enforce": "restricted",
    }}})
}

async fn check_version(client: &Client) -> anyhow::Result<u32> {
    let version = client
        .apiserver_version()
        .await
        .context("the API server does not answer")?;
    let minor = version
        .minor
        .trim_end_matches('+')
        .parse()
        .unwrap_or(u32::MAX);
    if minor < OLDEST {
        bail!(
            "Kubernetes {}.{} is too old: 1.{OLDEST} is needed",
            version.major,
            version.minor
        );
    }
    Ok(minor)
}

/// What this version of Kubernetes cannot do is done without.
fn suit_version(values: &mut Values, minor: u32) -> anyhow::Result<()> {
    if minor < 29 {
        values.set("proxy.nativeSidecars", json!(false))?;
    }
    if minor < 30 {
        values.set("proxy.sleepHooks", json!(false))?;
    }
    Ok(())
}

/// Leaves an issuer as it is, takes the one that is given, or makes one.
/// Returns its trust domain.
async fn ensure_issuer(
    client: &Client,
    ca: Option<&Path>,
    trust_domain: &str,
) -> anyhow::Result<TrustDomain> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), ROOT_NAMESPACE);
    if let Some(secret) = secrets.get_opt("weft-issuer").await? {
        if ca.is_some() {
            bail!("the mesh has an issuer already: it is changed with `meshctl ca rotate`");
        }
        let data = secret.data.unwrap_or_default();
        let text = |key: &str| {
            let value = data
                .get(key)
                .with_context(|| format!("the Secret weft-issuer has no {key}"))?;
            anyhow::Ok(String::from_utf8(value.0.clone())?)
        };
        let authority = Authority::from_pem(&text("tls.crt")?, &text("tls.key")?)?;
        return Ok(authority.trust_domain().clone());
    }
    let (certificate, key, roots, root_key) = match ca {
        Some(folder) => {
            let read = |name: &str| {
                let path = folder.join(name);
                std::fs::read_to_string(&path)
                    .with_context(|| format!("{} (made by `meshctl ca init`)", path.display()))
            };
            (read("tls.crt")?, read("tls.key")?, read("ca.crt")?, None)
        }
        None => {
            let root = new_root("Weft root")?;
            let (certificate, key) = root.sign_intermediate(&trust_domain.parse()?, ISSUER_LIFE)?;
            (certificate, key, root.certificate_pem, Some(root.key_pem))
        }
    };
    let authority = Authority::from_pem(&certificate, &key)?;
    if let Some(root_key) = root_key {
        let data = [("tls.crt", roots.clone()), ("tls.key", root_key)];
        secrets
            .create(&PostParams::default(), &secret("weft-root", &data))
            .await?;
    }
    let data = [
        ("tls.crt", certificate),
        ("tls.key", key),
        ("ca.crt", roots),
    ];
    secrets
        .create(&PostParams::default(), &secret("weft-issuer", &data))
        .await?;
    Ok(authority.trust_domain().clone())
}

fn secret(name: &str, data: &[(&str, String)]) -> Secret {
    let entry =
        |(key, value): &(&str, String)| ((*key).to_owned(), ByteString(value.clone().into_bytes()));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data.iter().map(entry).collect()),
        ..Secret::default()
    }
}

/// Asks until the answer is there, for a bounded time.
async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if start.elapsed() > WAIT {
            bail!(
                "{what} did not get ready within {WAIT:?}: see `kubectl -n {ROOT_NAMESPACE} get pods,events`"
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn wait_established(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds()? {
        let name = crd
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        until(name, || async {
            let found = api.get(name).await?;
            let conditions = found.status.and_then(|s| s.conditions).unwrap_or_default();
            Ok(conditions
                .iter()
                .any(|c| c.type_ == "Established" && c.status == "True")
                .then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn wait_rollout(client: &Client, name: &str, progress: &Progress) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), ROOT_NAMESPACE);
    until(name, || async {
        let found = api.get(name).await?;
        let status = found.status.unwrap_or_default();
        let wanted = found.spec.and_then(|s| s.replicas).unwrap_or(1);
        let current = status.observed_generation == found.metadata.generation
            && status.updated_replicas == Some(wanted)
            && status.replicas == Some(wanted);
        let ready = status.ready_replicas.unwrap_or_default();
        progress.step(&format!("{name}: {ready} of {wanted} ready"));
        Ok((current && ready == wanted).then_some(()))
    })
    .await
}

async fn wait_daemon_set(client: &Client, progress: &Progress) -> anyhow::Result<()> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), "weft-cni");
    until("weft-cni", || async {
        let found = api.get("weft-cni").await?;
        let status = found.status.unwrap_or_default();
        let (ready, wanted) = (status.number_ready, status.desired_number_scheduled);
        progress.step(&format!("weft-cni: {ready} of {wanted} nodes"));
        let current = status.observed_generation == found.metadata.generation
            && status.updated_number_scheduled.unwrap_or_default() == wanted;
        Ok((current && ready == wanted).then_some(()))
    })
    .await
}

/// API servers keep their connections: an injector that is going away makes
/// sidecars, as it was told, until it is gone.
async fn wait_replaced(client: &Client, progress: &Progress) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), ROOT_NAMESPACE);
    let injectors = ListParams::default().labels("app.kubernetes.io/name=weft-injector");
    until("the end of the old injectors", || async {
        let found = pods.list(&injectors).await?.items;
        let leaving = found
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some());
        let leaving = leaving.count();
        progress.step(&format!("weft-injector: {leaving} old ones are leaving"));
        Ok((leaving == 0).then_some(()))
    })
    .await
}

async fn wait_webhook(client: &Client, progress: &Progress) -> anyhow::Result<()> {
    progress.step("the webhook's certificate");
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    until("weft-injector", || async {
        let hooks = api.get("weft-injector").await?.webhooks.unwrap_or_default();
        Ok(hooks
            .iter()
            .all(|h| h.client_config.ca_bundle.is_some())
            .then_some(()))
    })
    .await
}

async fn has_gateway_api(client: &Client) -> bool {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    matches!(
        api.get_opt("httproutes.gateway.networking.k8s.io").await,
        Ok(Some(_))
    )
}

/// Takes the mesh away. Pods keep their sidecars until they are restarted.
pub fn uninstall(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    block_on(async {
        let client = client(&args.cluster).await?;
        let pods: Api<Pod> = Api::all(client.clone());
        let meshed = pods
            .list(&ListParams::default().labels(&format!("{LABEL_INJECTED}=true")))
            .await?
            .items;
        if !meshed.is_empty() && !args.force {
            let names: Vec<String> = meshed
                .iter()
                .take(5)
                .map(|p| {
                    format!(
                        "{}/{}",
                        p.metadata.namespace.as_deref().unwrap_or_default(),
                        p.metadata.name.as_deref().unwrap_or_default()
                    )
                })
                .collect();
            bail!(
                "{} pods have a sidecar, {} among them: remove the label weft.dev/injection from their namespaces and restart them first, or give --force",
                meshed.len(),
                names.join(", ")
            );
        }
        let progress = Progress::new();
        let mut objects = Objects::new(client.clone());
        // The webhook first: without its injector it would stop pods from being made.
        let mut all = everything()?;
        all.reverse();
        if args.crds {
            all.extend(crds()?);
        }
        all.push(namespace());
        for object in &all {
            progress.step(&describe(object));
            objects.delete(object).await?;
        }
        let bundles: Api<ConfigMap> = Api::all(client.clone());
        for bundle in bundles
            .list(&ListParams::default().fields("metadata.name=weft-trust-bundle"))
            .await?
            .items
        {
            let (Some(namespace), Some(name)) = (bundle.metadata.namespace, bundle.metadata.name)
            else {
                continue;
            };
            if namespace == ROOT_NAMESPACE {
                continue;
            }
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
            api.delete(&name, &DeleteParams::default())
                .await
                .map(|_| ())
                .or_else(gone)?;
        }
        progress.step("the namespace weft-system");
        let namespaces: Api<Namespace> = Api::all(client.clone());
        until("the end of weft-system", || async {
            Ok(namespaces
                .get_opt(ROOT_NAMESPACE)
                .await?
                .is_none()
                .then_some(()))
        })
        .await?;
        progress.done();
        println!("{} Weft is gone from this cluster", green("done:"));
        Ok(ExitCode::SUCCESS)
    })
}

fn gone(error: kube::Error) -> kube::Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        error => Err(error),
    }
}
