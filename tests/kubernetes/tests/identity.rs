//! Who gets a certificate, and who does not.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use base64::Engine;
use weft_kubernetes_tests::*;

/// A way to the control plane's port for proxies, from where the tests run.
struct Forward {
    kubectl: Child,
    address: String,
    /// What it says later must find somebody who listens.
    _output: BufReader<ChildStdout>,
}

impl Forward {
    fn new() -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "exec $WEFT_WITHIN \"$WEFT_KUBECTL\" -n weft-system port-forward deployment/weft-control-plane :15010"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("kubectl");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("stdout"));
        out.read_line(&mut line).expect("a line");
        let address = line
            .split_whitespace()
            .nth(2)
            .expect("an address")
            .to_owned();
        Self {
            kubectl: child,
            address,
            _output: out,
        }
    }

    /// Asks for a certificate with a token.
    fn certify(&self, token: &str) -> Ran {
        let key = "openssl ecparam -name prime256v1 -genkey -noout 2>/dev/null";
        let csr = Command::new("sh")
            .args([
                "-c",
                &format!("{key} | openssl req -new -key /dev/stdin -subj /CN=x -outform DER"),
            ])
            .output()
            .expect("openssl");
        let csr = base64::engine::general_purpose::STANDARD.encode(csr.stdout);
        let repository = std::env::var("WEFT_REPOSITORY").expect("WEFT_REPOSITORY");
        let tools = std::env::var("HOME").unwrap_or_default() + "/.cache/weft/tools/grpcurl";
        let call = format!(
            "exec $WEFT_WITHIN {tools} -insecure -import-path {repository}/proto -proto weft.proto -H 'authorization: Bearer {token}' \
             -d '{{\"csr_der\": \"{csr}\"}}' {} weft.v1.Identity/Certify",
            self.address
        );
        let output = Command::new("sh").args(["-c", &call]).output();
        output.expect("grpcurl").into()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

#[test]
fn only_a_token_of_a_living_pod_and_for_this_audience_is_taken() {
    let ns = Namespace::plain("tokens");
    ns.k("create serviceaccount web");
    ns.k("create serviceaccount other");
    let pod = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{serviceAccountName: web, containers: [{{name: app, image: {WORKLOAD}, args: [serve]}}]}}}}\n---\n"
        )
    };
    ns.apply(&(pod("web") + &pod("gone")));
    ns.k("wait --for=condition=Ready pod/web pod/gone --timeout=60s");
    let uid = |name: &str| {
        ns.get(&format!("pod {name}"))["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let token = |account: &str, audience: &str, pod: &str| {
        let bound = format!(
            "--bound-object-kind=Pod --bound-object-name={pod} --bound-object-uid={}",
            uid(pod)
        );
        ns.k(&format!(
            "create token {account} --audience={audience} {bound}"
        ))
        .trim()
        .to_owned()
    };
    let control_plane = Forward::new();
    let good = token("web", "weft", "web");
    let issued = control_plane.certify(&good).good();
    assert!(
        issued.contains("spiffe://cluster.local/ns/tokens/sa/web"),
        "{issued}"
    );
    let of_gone = token("web", "weft", "gone");
    ns.k("delete pod gone --grace-period=0 --force");
    let unbound = ns.k("create token web --audience=weft").trim().to_owned();
    let others = [
        (
            "another audience",
            token("web", "kubernetes", "web"),
            "refused",
        ),
        ("a deleted pod", of_gone, "refused"),
        ("no pod", unbound, "not bound to a pod"),
        ("nonsense", "e30.e30.e30".to_owned(), "refused"),
    ];
    for (what, token, told) in others {
        let ran = control_plane.certify(&token);
        assert!(ran.code != 0 && ran.err.contains(told), "{what}: {ran:?}");
    }
    // The API server itself gives no token of an account that the pod does not run as.
    let bound = format!(
        "--bound-object-kind=Pod --bound-object-name=web --bound-object-uid={}",
        uid("web")
    );
    let words = format!("-n tokens create token other --audience=weft {bound}");
    let claimed = kubectl(&words.split_whitespace().collect::<Vec<_>>());
    if claimed.code == 0 {
        let ran = control_plane.certify(claimed.out.trim());
        assert!(
            ran.code != 0 && ran.err.contains("does not run as other"),
            "{ran:?}"
        );
    }
}

#[test]
fn a_tampered_webhook_certificate_is_noticed_and_mended() {
    let trusted = || {
        let hooks = get("mutatingwebhookconfiguration weft-injector");
        hooks["webhooks"][0]["clientConfig"]["caBundle"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let good = trusted();
    let other = base64::engine::general_purpose::STANDARD.encode(
        Command::new("sh")
            .args(["-c", "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null -subj /CN=other -days 1 2>/dev/null"])
            .output()
            .expect("openssl")
            .stdout,
    );
    let patch = format!(
        "[{{\"op\": \"replace\", \"path\": \"/webhooks/1/clientConfig/caBundle\", \"value\": \"{other}\"}}]"
    );
    kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        "weft-injector",
        "--type=json",
        "-p",
        &patch,
    ])
    .good();
    // Only the webhook of pods that opt in was touched: nothing else waits for it.
    let ns = Namespace::plain("tampered");
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web, annotations: {{weft.dev/inject: enabled}}}}, spec: {{containers: [{{name: app, image: {WORKLOAD}, args: [serve]}}]}}}}"
    );
    let refused = ns.try_apply(&pod);
    assert!(
        refused.code != 0 && refused.err.contains("certificate"),
        "{refused:?}"
    );
    eventually("the mended webhook", 60, || ns.try_apply(&pod).code == 0);
    assert_eq!(trusted(), good);
}
