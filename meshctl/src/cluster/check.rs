//! What `meshctl check` looks at in a cluster, before and after the mesh is
//! installed.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use weft_api::{ANNOTATION_INJECT, LABEL_INJECTED, LABEL_INJECTION, ROOT_NAMESPACE};
use weft_identity::certificate_dates;

use crate::check::Finding;

/// The oldest kernel whose nftables redirects in every way that is used.
const OLDEST_KERNEL: (u32, u32) = (5, 2);
/// Kinds of the Gateway API that the mesh reads.
const GATEWAY_API: [&str; 3] = ["httproutes", "grpcroutes", "referencegrants"];

/// Looks at the cluster itself and at what an installation put into it.
pub async fn check_cluster(client: &Client, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let mut add = |level, about: &str, text: String| {
        findings.push(Finding {
            level,
            about: about.to_owned(),
            text,
        });
    };
    let version = client.apiserver_version().await?;
    let minor: u32 = version
        .minor
        .trim_end_matches('+')
        .parse()
        .unwrap_or_default();
    match minor {
        0..=27 => add(
            "error",
            "Kubernetes",
            format!("1.{minor} is too old: 1.28 is needed"),
        ),
        28 => add(
            "warning",
            "Kubernetes",
            "1.28: sidecars are ordinary containers; from 1.29 on they start first and end last"
                .to_owned(),
        ),
        _ => add("ok", "Kubernetes", format!("1.{minor}")),
    }
    check_nodes(client, &mut add).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(ROOT_NAMESPACE).await?.is_none() {
        check_rights(client, &mut add).await?;
        add(
            "error",
            "control plane",
            "the mesh is not installed: meshctl install".to_owned(),
        );
        return Ok(());
    }
    check_kinds(client, &mut add).await?;
    check_deployments(client, &mut add).await?;
    check_webhook(client, &mut add).await?;
    check_pods(client, &mut add).await
}

type Add<'a> = dyn FnMut(&'static str, &str, String) + 'a;

async fn check_nodes(client: &Client, add: &mut Add<'_>) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let listed = nodes.list(&ListParams::default()).await?.items;
    let mut fine = 0;
    for node in &listed {
        let info = node.status.as_ref().and_then(|s| s.node_info.as_ref());
        let kernel = info.map(|i| i.kernel_version.clone()).unwrap_or_default();
        let mut parts = kernel
            .split(['.', '-'])
            .map(|p| p.parse::<u32>().unwrap_or_default());
        let release = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        if release < OLDEST_KERNEL {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            add(
                "error",
                name,
                format!("its kernel {kernel} is too old: 5.2 is needed for redirect rules"),
            );
        } else {
            fine += 1;
        }
    }
    add(
        "ok",
        "nodes",
        format!("{fine} of {} have a kernel that can redirect", listed.len()),
    );
    Ok(())
}

/// Whether the user may install.
async fn check_rights(client: &Client, add: &mut Add<'_>) -> anyhow::Result<()> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for (group, resource) in [
        ("", "namespaces"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations",
        ),
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
        ),
    ] {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some("create".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = api.create(&PostParams::default(), &review).await?;
        if !answer.status.is_some_and(|s| s.allowed) {
            missing.push(resource);
        }
    }
    match missing.as_slice() {
        [] => add(
            "ok",
            "permissions",
            "the mesh can be installed with this kubeconfig".to_owned(),
        ),
        missing => add(
            "error",
            "permissions",
            format!(
                "this kubeconfig may not create {}: use one that may",
                missing.join(", ")
            ),
        ),
    }
    Ok(())
}

async fn check_kinds(client: &Client, add: &mut Add<'_>) -> anyhow::Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut fine = true;
    for name in ["authorizationpolicies", "authenticationpolicies"] {
        if crds.get_opt(&format!("{name}.weft.dev")).await?.is_none() {
            fine = false;
            add(
                "error",
                "kinds",
                format!(
                    "{name}.weft.dev is missing, so that no such policy is in force but those that were read before: meshctl upgrade"
                ),
            );
        }
    }
    for name in GATEWAY_API {
        if crds
            .get_opt(&format!("{name}.gateway.networking.k8s.io"))
            .await?
            .is_none()
        {
            fine = false;
            add(
                "warning",
                "kinds",
                format!(
                    "{name} of the Gateway API are missing: https://gateway-api.sigs.k8s.io/guides/getting-started"
                ),
            );
        }
    }
    if fine {
        add(
            "ok",
            "kinds",
            "all that the mesh reads are there".to_owned(),
        );
    }
    Ok(())
}

async fn check_deployments(client: &Client, add: &mut Add<'_>) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), ROOT_NAMESPACE);
    for (name, about) in [
        ("weft-control-plane", "control plane"),
        ("weft-injector", "injector"),
    ] {
        let Some(found) = deployments.get_opt(name).await? else {
            add(
                "error",
                about,
                format!("the Deployment {ROOT_NAMESPACE}/{name} is missing: meshctl install"),
            );
            continue;
        };
        let wanted = found.spec.and_then(|s| s.replicas).unwrap_or(1);
        let ready = found
            .status
            .and_then(|s| s.ready_replicas)
            .unwrap_or_default();
        let text = format!("{ready} of {wanted} replicas are ready");
        match ready {
            0 => add(
                "error",
                about,
                format!("{text}: kubectl -n {ROOT_NAMESPACE} describe deployment {name}"),
            ),
            ready if ready < wanted => add("warning", about, text),
            _ => add("ok", about, text),
        }
    }
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), "weft-cni");
    if let Some(status) = daemon_sets
        .get_opt("weft-cni")
        .await?
        .and_then(|d| d.status)
    {
        let (ready, wanted) = (status.number_ready, status.desired_number_scheduled);
        let level = if ready < wanted { "error" } else { "ok" };
        add(
            level,
            "CNI plugin",
            format!("{ready} of {wanted} nodes have it"),
        );
    }
    Ok(())
}

async fn check_webhook(client: &Client, add: &mut Add<'_>) -> anyhow::Result<()> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let Some(found) = api.get_opt("weft-injector").await? else {
        add(
            "error",
            "webhook",
            "its configuration is missing, so that no pod gets a sidecar: meshctl upgrade"
                .to_owned(),
        );
        return Ok(());
    };
    let hooks = found.webhooks.unwrap_or_default();
    if hooks.iter().any(|h| h.client_config.ca_bundle.is_none()) {
        add(
            "error",
            "webhook",
            "API servers do not trust it yet: see the control plane's log".to_owned(),
        );
        return Ok(());
    }
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    if validating.get_opt("weft-injector").await?.is_none() {
        add(
            "warning",
            "webhook",
            "policies are not checked when they are written, for its configuration is missing: meshctl upgrade"
                .to_owned(),
        );
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), ROOT_NAMESPACE);
    let secret = match secrets.get_opt("weft-injector-tls").await {
        Ok(secret) => secret,
        // Reading Secrets is not every operator's right.
        Err(_) => return Ok(()),
    };
    let chain = secret
        .and_then(|s| s.data)
        .and_then(|mut d| d.remove("tls.crt"));
    let leaf = chain.and_then(|c| first_certificate(&c.0));
    match leaf.and_then(|der| certificate_dates(&der).ok()) {
        Some((_, end)) if end > std::time::SystemTime::now() => add(
            "ok",
            "webhook",
            "trusted, and its certificate is valid".to_owned(),
        ),
        Some(_) => add(
            "error",
            "webhook",
            "its certificate has ended: see the control plane's log".to_owned(),
        ),
        None => add(
            "error",
            "webhook",
            "it has no certificate: see the control plane's log".to_owned(),
        ),
    }
    Ok(())
}

fn first_certificate(pem: &[u8]) -> Option<Vec<u8>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem)
        .ok()
        .map(|der| der.to_vec())
}

/// Pods that should have a sidecar and have none.
async fn check_pods(client: &Client, add: &mut Add<'_>) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let joined = ListParams::default().labels(&format!("{LABEL_INJECTION}=enabled"));
    let mut without = Vec::new();
    for namespace in namespaces.list(&joined).await?.items {
        let name = namespace.metadata.name.unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(client.clone(), &name);
        let unmeshed = ListParams::default().labels(&format!("{LABEL_INJECTED}!=true"));
        for pod in pods.list(&unmeshed).await?.items {
            let out = pod
                .metadata
                .annotations
                .as_ref()
                .is_some_and(|a| a.get(ANNOTATION_INJECT).is_some_and(|v| v == "disabled"));
            let host = pod
                .spec
                .as_ref()
                .is_some_and(|s| s.host_network == Some(true));
            let phase = pod
                .status
                .as_ref()
                .and_then(|s| s.phase.as_deref())
                .unwrap_or_default();
            if !out && !host && ["Running", "Pending"].contains(&phase) {
                without.push(format!("{name}/{}", pod.metadata.name.unwrap_or_default()));
            }
        }
    }
    for pod in &without {
        add(
            "warning",
            &format!("pod {pod}"),
            "should have a sidecar and has none: delete it, so that its replacement gets one"
                .to_owned(),
        );
    }
    if without.is_empty() {
        add(
            "ok",
            "sidecars",
            "every pod that should have one has one".to_owned(),
        );
    }
    Ok(())
}
