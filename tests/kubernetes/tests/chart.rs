//! `meshctl` and Helm render the same chart.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;
use weft_kubernetes_tests::meshctl;

fn objects(text: &str) -> BTreeMap<String, Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let name = |o: &Value| {
        let text = |p: &str| {
            o.pointer(p)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        format!(
            "{} {} {}",
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name")
        )
    };
    let objects = all.into_iter().filter(|o| !o.is_null());
    objects.map(|o| (name(&o), o)).collect()
}

#[test]
fn helm_makes_what_meshctl_applies() {
    let repository = std::env::var("WEFT_REPOSITORY").expect("WEFT_REPOSITORY");
    let helm = std::env::var("HOME").unwrap_or_default() + "/.cache/weft/tools/helm";
    for set in [
        "",
        "cni.enabled=true",
        "controlPlane.evictUnmeshed=true,controlPlane.otlpEndpoint=http://c:4317,proxy.resources.limits.cpu=2,images.proxy=example.org/p:1",
    ] {
        let chart = format!("{repository}/deploy/chart");
        let mut args = vec![
            "template",
            "weft",
            &chart,
            "-n",
            "weft-system",
            "--include-crds",
            "--kube-version=1.34.0",
        ];
        let mut own = vec!["install", "--print"];
        for pair in set.split(',').filter(|p| !p.is_empty()) {
            args.extend(["--set", pair]);
            own.extend(["--set", pair]);
        }
        let output = Command::new(&helm).args(&args).output().expect("helm");
        let theirs = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (theirs, ours) = (objects(&theirs), objects(&meshctl(&own).good()));
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<Vec<_>>(),
            "{set}"
        );
        for (name, object) in &ours {
            assert_eq!(Some(object), theirs.get(name), "{set}: {name}");
        }
    }
}
