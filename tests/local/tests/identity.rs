//! Who is who, over the wire: certificates that must not be believed, requests
//! for names that are not the caller's, and a root that is replaced.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{CertificateParams, DistinguishedName, Issuer, KeyPair, SanType};
use weft_tests_local::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An issuer made by `meshctl ca init`.
fn issuer(folder: &Folder, name: &str, flags: &[&str]) -> PathBuf {
    let path = folder.0.join(name);
    let mut args = vec!["ca", "init", "--folder", path.to_str().unwrap()];
    args.extend(flags);
    let ran = meshctl(&args);
    assert_eq!(ran.code, 0, "{ran:?}");
    path
}

/// A leaf that an issuer signed: files of its chain and its key.
fn leaf(
    folder: &Folder,
    issuer: &Path,
    uris: &[&str],
    valid: std::ops::Range<SystemTime>,
) -> (String, String) {
    let read = |name: &str| std::fs::read_to_string(issuer.join(name)).unwrap();
    let (certificate, key) = (read("tls.crt"), read("tls.key"));
    let signer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris
        .iter()
        .map(|u| SanType::URI((*u).try_into().unwrap()))
        .collect();
    params.not_before = valid.start.into();
    params.not_after = valid.end.into();
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &signer).unwrap();
    let name = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    (
        folder.write(&format!("{name}.crt"), leaf.pem() + &certificate),
        folder.write(&format!("{name}.key"), key.serialize_pem()),
    )
}

/// Speaks the mesh's protocol to a pod as anybody could who holds this
/// certificate. "answered": the sidecar sent a frame.
fn hello(mesh: &Mesh, address: &str, certificate: Option<&(String, String)>) -> String {
    let load = certificate.map_or_else(String::new, |(chain, key)| {
        format!("c.load_cert_chain('{chain}','{key}')")
    });
    let script = format!(
        "import ssl,socket\n\
         c=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT);c.check_hostname=False;c.verify_mode=ssl.CERT_NONE\n\
         c.set_alpn_protocols(['weft/http']);{load}\n\
         s=socket.create_connection(('{address}',8080),5)\n\
         try:\n t=c.wrap_socket(s);print('answered' if t.recv(9) else 'refused: ended')\n\
         except OSError as e: print('refused:',e)"
    );
    let ran = mesh.exec("deploy/plain", &["/usr/bin/python3", "-c", &script]);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.out.trim().to_owned()
}

fn address(mesh: &Mesh, pod: &str) -> String {
    let pods = mesh.pods();
    let found = pods
        .iter()
        .find(|p| p["pod"].as_str().unwrap().starts_with(pod))
        .unwrap();
    found["ip"].as_str().unwrap().to_owned()
}

#[test]
fn only_a_valid_certificate_of_the_mesh_opens_a_sidecar() {
    let folder = Folder::new("certificates");
    let ours = issuer(&folder, "ours", &[]);
    let foreign = issuer(&folder, "foreign", &[]);
    let mesh = Mesh::up_with(
        &(client("client") + &web("web", 1) + &unmeshed("plain", 1, "command: [sleep, infinity]")),
        &["--ca", ours.to_str().unwrap()],
    );
    let web = address(&mesh, "web");
    let now = SystemTime::now();
    let name = "spiffe://cluster.local/ns/t/sa/client";
    let valid = now - DAY..now + DAY;
    let say = |issuer: &Path, uris: &[&str], valid| {
        hello(&mesh, &web, Some(&leaf(&folder, issuer, uris, valid)))
    };
    assert_eq!(say(&ours, &[name], valid.clone()), "answered");
    for (what, said) in [
        ("expired", say(&ours, &[name], now - 2 * DAY..now - DAY)),
        (
            "not yet valid",
            say(&ours, &[name], now + DAY..now + 2 * DAY),
        ),
        (
            "of a foreign authority",
            say(&foreign, &[name], valid.clone()),
        ),
        (
            "of a trust domain that is not its issuer's",
            say(
                &ours,
                &["spiffe://other.example/ns/t/sa/client"],
                valid.clone(),
            ),
        ),
        ("of two names", say(&ours, &[name, name], valid.clone())),
        (
            "of no workload",
            say(&ours, &["spiffe://cluster.local/client"], valid),
        ),
        ("none", hello(&mesh, &web, None)),
    ] {
        assert!(said.starts_with("refused"), "a certificate {what}: {said}");
    }
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
}

/// Asks the control plane from a pod that has no sidecar.
fn grpc(mesh: &Mesh, flags: &str, method: &str, message: &str) -> String {
    let grpcurl = tool_for_pods("grpcurl");
    let proto = repository().join("proto");
    let ran = mesh.sh(
        "deploy/plain",
        &format!(
            "{grpcurl} -insecure -max-time 5 {flags} -import-path {} -proto weft.proto -d '{message}' 10.244.0.1:15010 weft.v1.{method}",
            proto.display()
        ),
    );
    format!("{}{}", ran.out, ran.err)
}

#[test]
fn a_certificate_is_of_the_tokens_pod_and_of_nobody_else() {
    let folder = Folder::new("certify");
    let ours = issuer(&folder, "ours", &[]);
    let mesh = Mesh::up_with(
        &(web("web", 1) + &unmeshed("plain", 1, "command: [sleep, infinity]")),
        &["--ca", ours.to_str().unwrap()],
    );
    // The token of web's sidecar.
    let process = format!("/proc/{}", mesh.pid("web", "weft-proxy"));
    let command = std::fs::read(format!("{process}/cmdline"));
    let command = String::from_utf8(command.unwrap()).unwrap();
    let path = command
        .split('\0')
        .skip_while(|a| *a != "--token")
        .nth(1)
        .unwrap();
    let token = std::fs::read_to_string(format!("{process}/root{path}")).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::default();
    let admin = "spiffe://cluster.local/ns/t/sa/admin";
    wanted.subject_alt_names = vec![SanType::URI(admin.try_into().unwrap())];
    let csr = wanted.serialize_request(&key).unwrap();
    let csr = BASE64_STANDARD.encode(csr.der());
    let certify = |bearer: &str, csr: &str| {
        let header = format!("-H 'authorization: Bearer {bearer}'");
        let message = format!("{{\"csr_der\":\"{csr}\"}}");
        grpc(&mesh, &header, "Identity/Certify", &message)
    };
    // Names in the request count for nothing.
    let issued = certify(&token, &csr);
    assert!(
        issued.contains("spiffe://cluster.local/ns/t/sa/web"),
        "{issued}"
    );
    let leaf = serde_json::from_str::<serde_json::Value>(&issued).unwrap()["chainDer"][0].clone();
    let leaf = BASE64_STANDARD.decode(leaf.as_str().unwrap()).unwrap();
    let leaf = String::from_utf8_lossy(&leaf);
    assert!(leaf.contains("ns/t/sa/web") && !leaf.contains("sa/admin"));

    let changed = {
        let (head, signature) = token.trim().rsplit_once('.').unwrap();
        let (header, _) = head.split_once('.').unwrap();
        let claims = "{\"sub\":\"system:serviceaccount:t:admin\",\"exp\":4102444800}";
        let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(claims);
        format!("{header}.{claims}.{signature}")
    };
    for (what, said, code) in [
        (
            "a changed token",
            certify(&changed, &csr),
            "Unauthenticated",
        ),
        ("no token", certify("", &csr), "Unauthenticated"),
        (
            "nonsense",
            certify(&token, "bm9uc2Vuc2U="),
            "InvalidArgument",
        ),
    ] {
        assert!(said.contains(code), "{what}: {said}");
    }
    // A pod that is gone has no claim, though its token is still within its time.
    mesh.delete(&deployment("web", 1, "command: [x]"));
    let said = certify(&token, &csr);
    assert!(said.contains("PermissionDenied"), "{said}");
}

#[test]
fn a_proxy_learns_nothing_in_another_pods_name() {
    let folder = Folder::new("watch");
    let ours = issuer(&folder, "ours", &[]);
    let mesh = Mesh::up_with(
        &(client("client") + &web("web", 1) + &unmeshed("plain", 1, "command: [sleep, infinity]")),
        &["--ca", ours.to_str().unwrap()],
    );
    let now = SystemTime::now();
    let name = "spiffe://cluster.local/ns/t/sa/client";
    let (chain, key) = leaf(&folder, &ours, &[name], now - DAY..now + DAY);
    let pods = mesh.pods();
    let full = |start: &str| {
        let name = |p: &&serde_json::Value| p["pod"].as_str().unwrap().starts_with(start);
        pods.iter().find(name).unwrap()["pod"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let watch = |pod: &str| {
        let hello = format!(
            "{{\"hello\":{{\"namespace\":\"t\",\"pod\":\"{pod}\",\"names\":[\"inbound\"]}}}}"
        );
        let flags = format!("-cert {chain} -key {key}");
        grpc(&mesh, &flags, "Discovery/Watch", &hello)
    };
    let own = watch(&full("client"));
    assert!(own.contains("inbound"), "{own}");
    let other = watch(&full("web"));
    assert!(other.contains("PermissionDenied"), "{other}");
    let none = grpc(&mesh, "", "Discovery/Watch", "{\"hello\":{}}");
    assert!(none.contains("Unauthenticated"), "{none}");
}

#[test]
fn a_root_is_replaced_under_load_without_a_lost_request() {
    let folder = Folder::new("roots");
    let old = issuer(&folder, "old", &[]);
    let new = issuer(&folder, "new", &[]);
    let mesh = Mesh::up_with(
        &(client("client") + &web("web", 2)),
        &["--ca", old.to_str().unwrap(), "--leaf-lifetime", "20s"],
    );
    let loaded = mesh.load("deploy/client", "http://web/items", 100, 70);
    let place = PathBuf::from("/run/weft").join(mesh.name()).join("issuer");
    let read = |of: &Path, name: &str| std::fs::read_to_string(of.join(name)).unwrap();
    let put = |name: &str, content: &str| {
        // As a mounted secret changes: at once.
        let next = place.join("next");
        std::fs::write(&next, content).unwrap();
        std::fs::rename(&next, place.join(name)).unwrap();
    };
    let settle = || std::thread::sleep(Duration::from_secs(20));
    // Both roots are trusted, then the new issuer signs, then the old root goes.
    put("ca.crt", &(read(&old, "ca.crt") + &read(&new, "ca.crt")));
    settle();
    put("tls.key", &read(&new, "tls.key"));
    put("tls.crt", &read(&new, "tls.crt"));
    settle();
    put("ca.crt", &read(&new, "ca.crt"));
    let ran = loaded.wait();
    let last = ran.out.lines().last().unwrap_or_default();
    assert!(last.contains(" bad 0 "), "{ran:?}");
    // New connections prove themselves under the new root alone.
    mesh.apply(&client("late"));
    assert_eq!(mesh.get("deploy/late", "http://web/items"), 200);
    let shown = mesh.ctl(&["ca", "show", "-o", "json"]).out;
    assert!(!shown.is_empty());
}

#[test]
fn a_callee_that_cannot_prove_itself_is_never_called_in_plaintext() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1)));
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    // Without redirect rules the application itself gets the connections; it
    // would answer plaintext gladly.
    let sidecar = mesh.pid("web", "weft-proxy");
    let ran = std::process::Command::new("nsenter")
        .args(["-t", &sidecar.to_string(), "-n"])
        .arg(programs().join("weft-init"))
        .arg("--remove")
        .status()
        .unwrap();
    assert!(ran.success());
    signal(sidecar, nix::sys::signal::Signal::SIGKILL);
    let flag = || {
        let ran = mesh.exec(
            "deploy/client",
            &["curl", "-si", "-m", "10", "http://web/items"],
        );
        assert!(
            !ran.out.contains("200 OK"),
            "answered in plaintext: {ran:?}"
        );
        let flag = ran
            .out
            .lines()
            .find_map(|l| l.strip_prefix("weft-response-flag: "));
        flag.unwrap_or_default().trim().to_owned()
    };
    eventually("the callee proves nothing", || flag() == "connect_failure");
    for _ in 0..5 {
        assert_eq!(flag(), "connect_failure");
    }
}
