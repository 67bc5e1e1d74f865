#!/usr/bin/env bash
# Runs the Gateway API conformance suite, unmodified, in the cluster that
# KUBECONFIG names and that the mesh is installed in: all mesh tests, with the
# features that the mesh itself reports (XMesh). Five of them pass by luck with no
# mesh at all, so these run once more, and the proxies must have counted them.
set -euo pipefail
cd "$(dirname "$0")"
suite=/var/cache/weft/conformance/suite
report=$PWD/../../target/conformance-report.yaml
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' ../../Cargo.toml)
kubectl() { $WEFT_WITHIN "$WEFT_KUBECTL" "$@"; }
meshctl() { $WEFT_WITHIN "$WEFT_MESHCTL" "$@"; }
suite() {
    # The suite does not wait for the end of what it deletes.
    for _ in $(seq 120); do
        [ -n "$(kubectl get namespaces -o name | grep gateway-conformance)" ] || break
        sleep 1
    done
    # Its manifests are in the program; it looks for nothing here.
    $WEFT_WITHIN $suite -test.v -test.timeout=15m --gateway-class= --mesh-name=weft \
        --namespace-labels=weft.dev/injection=enabled --conformance-profiles=MESH-HTTP,MESH-GRPC "$@"
}
kubectl apply -f - >/dev/null <<EOF
{apiVersion: gateway.networking.x-k8s.io/v1alpha1, kind: XMesh, metadata: {name: weft}, spec: {controllerName: weft.dev/mesh}}
EOF
kubectl wait --for=condition=Accepted xmesh/weft --timeout=60s >/dev/null
log=$(mktemp)
trap 'rm -f $log' EXIT
if ! suite --organization=weft --project=weft --url=https://weft.dev --version="v$version" \
    --contact=https://weft.dev --report-output="$report" >"$log" 2>&1; then
    grep -v -e SKIP -e '=== ' "$log" | tail -n 100
    exit 1
fi
passed=$(grep -cE '^    --- PASS: TestConformance/Mesh[A-Za-z0-9]+ ' "$log" || true)
echo "conformance: $passed mesh tests passed"
if [ "$passed" != 22 ]; then
    echo "conformance: 22 were to pass" >&2
    exit 1
fi
# Requests that sidecars of the suite's namespaces carried with mutual TLS, as the callers' ones counted.
counted() {
    meshctl edges --window 0 -o json | python3 -c 'import json, sys
print(sum(e["requests"] for e in json.load(sys.stdin) if e["destinationNamespace"].startswith("gateway-conformance") and e["mtls"]))'
}
for test in MeshBasic MeshHTTPRouteMatching MeshHTTPRouteNamedRule MeshHTTPRouteSimpleSameNamespace MeshTrafficSplit; do
    before=$(counted)
    suite --run-test=$test >"$log" 2>&1 || { cat "$log"; exit 1; }
    for _ in $(seq 20); do
        after=$(counted)
        [ "$after" -le "$before" ] || break
        sleep 0.5
    done
    echo "conformance: $test went through the proxies: $((after - before)) requests with mutual TLS"
    if [ "$after" -le "$before" ]; then exit 1; fi
done
grep -A 30 '^profiles:' "$report"
