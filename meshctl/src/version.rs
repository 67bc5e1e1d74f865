//! `meshctl version`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;
use weft_proto::ProxiesRequest;

use crate::cli::MeshArgs;
use crate::operator::ask_all;
use crate::output::{print, table, yellow};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    meshctl: &'static str,
    control_planes: Vec<String>,
    /// How many sidecars run each version.
    proxies: BTreeMap<String, usize>,
    /// One version apart is supported; more is not.
    skew: Option<String>,
}

pub fn run(args: &MeshArgs) -> anyhow::Result<ExitCode> {
    let own = env!("CARGO_PKG_VERSION");
    let answers = ask_all(args, |mut operator| async move {
        Ok(operator.proxies(ProxiesRequest {}).await?.into_inner())
    });
    let answers = answers.unwrap_or_else(|error| {
        eprintln!(
            "{} only this program\'s own version is known: {error:#}",
            yellow("warning:")
        );
        Vec::new()
    });
    let mut proxies = BTreeMap::new();
    for proxy in answers
        .iter()
        .flat_map(|a| &a.proxies)
        .filter(|p| p.connected)
    {
        *proxies.entry(proxy.proxy_version.clone()).or_default() += 1;
    }
    let control_planes: Vec<String> = answers
        .iter()
        .map(|a| a.control_plane_version.clone())
        .collect();
    let all = control_planes
        .iter()
        .chain(proxies.keys())
        .map(String::as_str)
        .chain([own]);
    let minors: Vec<u64> = all.filter_map(minor).collect();
    let apart = minors
        .iter()
        .max()
        .zip(minors.iter().min())
        .map_or(0, |(max, min)| max - min);
    let skew = (apart > 1).then(|| {
        format!("{apart} minor versions apart: only one is supported; upgrade the oldest")
    });
    let versions = Versions {
        meshctl: own,
        control_planes,
        proxies,
        skew,
    };
    print(args.output, &versions, || {
        let mut rows = vec![vec!["meshctl".to_owned(), own.to_owned(), "1".to_owned()]];
        let counted = |list: &[String]| {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            list.iter()
                .for_each(|v| *counts.entry(v.clone()).or_default() += 1);
            counts
        };
        for (version, count) in counted(&versions.control_planes) {
            rows.push(vec!["control plane".to_owned(), version, count.to_string()]);
        }
        for (version, count) in &versions.proxies {
            rows.push(vec![
                "sidecars".to_owned(),
                version.clone(),
                count.to_string(),
            ]);
        }
        let mut text = table(&["PART", "VERSION", "COUNT"], rows);
        if let Some(skew) = &versions.skew {
            text.push_str(&format!("\n{}", yellow(skew)));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

fn minor(version: &str) -> Option<u64> {
    let mut parts = version.split('.');
    let major: u64 = parts.next()?.parse().ok()?;
    let minor: u64 = parts.next()?.parse().ok()?;
    Some(major * 1000 + minor)
}
