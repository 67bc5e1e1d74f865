//! `meshctl check`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use serde::Serialize;
use weft_identity::certificate_dates;
use weft_proto::{ProxiesRequest, ProxiesResponse, ProxyState, StatusRequest, StatusResponse};

use crate::cli::MeshArgs;
use crate::cluster::check::check_cluster;
use crate::cluster::{block_on, client};
use crate::operator::{Mesh, ask_all};
use crate::output::{green, print, red, yellow};

/// Something that is well, or is not.
#[derive(Serialize)]
pub struct Finding {
    pub level: &'static str,
    pub about: String,
    pub text: String,
}

/// An issuer ought to be renewed this long before its end.
const ISSUER_DAYS: u64 = 30;

pub fn run(args: &MeshArgs) -> anyhow::Result<ExitCode> {
    let mut findings = Vec::new();
    if let Mesh::Cluster(cluster) = Mesh::find(args) {
        block_on(async { check_cluster(&client(&cluster).await?, &mut findings).await })?;
        if findings
            .iter()
            .any(|f| f.level == "error" && f.about == "control plane")
        {
            return tell(args, &findings);
        }
    }
    let answers = ask_all(args, |mut operator| async move {
        let proxies = operator.proxies(ProxiesRequest {}).await?.into_inner();
        let status = operator.status(StatusRequest {}).await?.into_inner();
        Ok((proxies, status))
    })?;
    let Some((proxies, status)) = answers.into_iter().reduce(together) else {
        bail!("no control plane answered");
    };
    check_issuer(&proxies, &mut findings)?;
    check_proxies(&proxies, &mut findings);
    check_objects(&status, &mut findings);
    tell(args, &findings)
}

fn tell(args: &MeshArgs, findings: &[Finding]) -> anyhow::Result<ExitCode> {
    print(args.output, &findings, || {
        let line = |f: &Finding| {
            let mark = match f.level {
                "ok" => green("ok     "),
                "warning" => yellow("warning"),
                _ => red("error  "),
            };
            format!("{mark} {}: {}", f.about, f.text)
        };
        findings.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    let wrong = findings.iter().any(|f| f.level == "error");
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What two replicas know: of a proxy that follows one of them, what that one says.
fn together(
    (mut known, status): (ProxiesResponse, StatusResponse),
    (more, _): (ProxiesResponse, StatusResponse),
) -> (ProxiesResponse, StatusResponse) {
    for proxy in more.proxies {
        let same = |p: &&mut ProxyState| p.namespace == proxy.namespace && p.pod == proxy.pod;
        match known.proxies.iter_mut().find(same) {
            Some(old) if proxy.connected => *old = proxy,
            Some(_) => {}
            None => known.proxies.push(proxy),
        }
    }
    (known, status)
}

fn check_issuer(known: &ProxiesResponse, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let all = known
        .roots_der
        .iter()
        .map(|r| ("root", r))
        .chain([("issuer", &known.intermediate_der)]);
    for (about, der) in all {
        let (_, end) = certificate_dates(der)?;
        let days = end
            .duration_since(SystemTime::now())
            .unwrap_or_default()
            .as_secs()
            / 86_400;
        let (level, text) = match days {
            0 => (
                "error",
                "ends within a day: `meshctl ca rotate` replaces it in a cluster, `meshctl ca init` makes one for a machine".to_owned(),
            ),
            d if d < ISSUER_DAYS => (
                "warning",
                format!("ends in {d} days: `meshctl ca rotate` replaces it in a cluster, `meshctl ca init` makes one for a machine"),
            ),
            d => ("ok", format!("valid for {d} days")),
        };
        findings.push(Finding {
            level,
            about: about.to_owned(),
            text,
        });
    }
    Ok(())
}

fn check_proxies(known: &ProxiesResponse, findings: &mut Vec<Finding>) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64);
    let mut add =
        |level, about: String, text: String| findings.push(Finding { level, about, text });
    let mut fine = 0;
    for proxy in &known.proxies {
        let about = format!("proxy {}/{}", proxy.namespace, proxy.pod);
        if !proxy.connected {
            add(
                "error",
                about,
                "is not connected to the control plane; it runs with what it knew last".to_owned(),
            );
        } else if let Some(refused) = proxy.refused.first() {
            add(
                "error",
                about,
                format!("refused {}: {}", refused.name, refused.reason),
            );
        } else if proxy.certificate_not_after > 0 && proxy.certificate_not_after < now {
            add(
                "error",
                about,
                "its certificate has ended: see its log".to_owned(),
            );
        } else if proxy.clock_skew_millis.unsigned_abs() > weft_proto::MAX_CLOCK_SKEW_MILLIS {
            add(
                "error",
                about,
                format!(
                    "its node's clock and the control plane's are {} seconds apart: certificates will be refused; set the clocks by NTP",
                    proxy.clock_skew_millis.unsigned_abs() / 1000
                ),
            );
        } else if proxy.proxy_version != known.control_plane_version {
            add(
                "warning",
                about,
                format!(
                    "runs {}, the control plane {}",
                    proxy.proxy_version, known.control_plane_version
                ),
            );
        } else {
            fine += 1;
        }
    }
    add(
        "ok",
        "proxies".to_owned(),
        format!(
            "{fine} of {} are connected and current",
            known.proxies.len()
        ),
    );
}

fn check_objects(status: &StatusResponse, findings: &mut Vec<Finding>) {
    let mut fine = 0;
    for object in &status.objects {
        let bad: Vec<_> = object.conditions.iter().filter(|c| !c.status).collect();
        fine += usize::from(bad.is_empty());
        for condition in bad {
            findings.push(Finding {
                level: "error",
                about: format!("{} {}/{}", object.kind, object.namespace, object.name),
                text: format!(
                    "{} is False ({}): {}",
                    condition.r#type, condition.reason, condition.message
                ),
            });
        }
    }
    findings.push(Finding {
        level: "ok",
        about: "routes and policies".to_owned(),
        text: format!("{fine} of {} are in force", status.objects.len()),
    });
}
