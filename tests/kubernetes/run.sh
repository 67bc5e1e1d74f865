#!/usr/bin/env bash
# Starts a cluster, installs the mesh in it, runs the tests and the conformance
# suite, and takes everything away again.
# Usage: run.sh all | up | test [FILTER...] | conformance | conformance-alone | down
#   up leaves the cluster running; `test` and `conformance` use one that is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/kind/place.env
name=weft-1
export KUBECONFIG=$run/$name.kubeconfig

environment() {
    if [ -e /run/netns/$netns ]; then
        export WEFT_WITHIN="nsenter --net=/run/netns/$netns" DOCKER_HOST=$socket
        export WEFT_KUBECTL=$cache/bin/kubernetes/kubectl
        kind=$cache/bin/kind
    else
        export WEFT_WITHIN="" WEFT_KUBECTL
        WEFT_KUBECTL=$(command -v kubectl)
        kind=kind
    fi
    export WEFT_MESHCTL=$PWD/target/release/meshctl WEFT_REPOSITORY=$PWD
    WEFT_OLDER=${WEFT_OLDER:-$(tests/kubernetes/older.sh)}
    export WEFT_OLDER
}

kubectl() { $WEFT_WITHIN "$WEFT_KUBECTL" "$@"; }

images() {
    deploy/images.sh
    cargo rustc --quiet --package weft-test-workload --bin workload -- -C target-feature=+crt-static -C strip=symbols
    deploy/image.py target/images/test-workload.tar docker.io/weft/test-workload:0.1.0 --user 65532 \
        --entrypoint /workload target/debug/workload=/workload
    tests/conformance/build.sh
}

up() {
    images
    WEFT_OLDER=$(tests/kubernetes/older.sh)
    NODES=2 tests/kind/cluster.sh up
    environment
    local image crds
    # Both nodes are the tests' to use.
    kubectl taint nodes --all node-role.kubernetes.io/control-plane- >/dev/null 2>&1 || true
    for image in target/images/*.tar ${WEFT_OLDER:+"$WEFT_OLDER"/images/*.tar}; do
        # Loaded once: a tag is a program's version.
        $WEFT_WITHIN "$kind" load image-archive "$image" --name $name
    done
    crds=$(go -C tests/conformance/suite mod download -json sigs.k8s.io/gateway-api | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/config/crd/experimental
    kubectl apply --server-side -f "$crds" 2>&1 | grep -v -e serverside-applied -e kustomization -e 'apiVersion not set' || true
    local start=$SECONDS called=false
    $WEFT_WITHIN target/release/meshctl install
    kubectl apply -f examples/manifests >/dev/null
    for _ in $(seq 300); do
        if [ -n "$($WEFT_WITHIN target/release/meshctl edges -n shop --window 0 -o json | grep '"mtls": true')" ]; then
            called=true
            break
        fi
        sleep 0.3
    done
    if ! $called; then
        kubectl -n shop get pods,events
        echo "the example made no call with mutual TLS" >&2
        exit 1
    fi
    echo "from an empty cluster to the first call with mutual TLS of the example: $((SECONDS - start)) s"
    kubectl delete namespace shop --wait=false >/dev/null
}

run_tests() {
    environment
    cargo test --package weft-kubernetes-tests -- --nocapture --test-threads=4 "$@"
}

conformance() {
    environment
    tests/conformance/run.sh
}

down() { tests/kind/cluster.sh down; }

case ${1:-all} in
all)
    trap down EXIT
    up
    conformance
    run_tests
    ;;
conformance-alone)
    trap down EXIT
    up
    conformance
    mkdir -p docs/conformance
    cp target/conformance-report.yaml docs/conformance/report.yaml
    echo "the report is in docs/conformance/report.yaml"
    ;;
test) run_tests "${@:2}" ;;
conformance | up | down) "$1" ;;
*)
    sed -n '4,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac
