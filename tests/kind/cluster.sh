#!/usr/bin/env bash
# Kubernetes clusters by kind, for tests and by hand.
# Usage: cluster.sh up|down     CLUSTERS=1 NODES=1: how many, and of how many nodes each
#
# Where a Docker Engine answers, it and the published node image are used. Where
# there is none, both are made here, and nothing is pulled from a registry.
set -euo pipefail
cd "$(dirname "$0")"
. ./place.env
. ./versions.env
clusters=${CLUSTERS:-1} nodes=${NODES:-1}

own_engine=false
if [ "${DOCKER_HOST:-}" = "$socket" ] || ! docker info >/dev/null 2>&1; then own_engine=true; fi

prepare() {
    if $own_engine; then
        command -v go >/dev/null || { echo "clusters are built from Go modules: install Go 1.26 from go.dev" >&2; exit 1; }
        ../../examples/setup.sh cluster dockerd:docker.io debootstrap:debootstrap iptables-restore:iptables nft:nftables conntrack:conntrack \
            busybox:busybox cc:gcc python3:python3 sysctl:procps ip:iproute2
        ./engine.sh start
        export DOCKER_HOST=$socket
        image=$(./build.sh)
        kind_program=$cache/bin/kind kubectl=$cache/bin/kubernetes/kubectl
        within=(nsenter "--net=/run/netns/$netns")
    else
        for program in kind kubectl; do
            command -v $program >/dev/null || { echo "$program is missing: install it (https://kind.sigs.k8s.io)" >&2; exit 1; }
        done
        image=kindest/node:$kubernetes
        kind_program=kind kubectl=kubectl
        within=()
    fi
}

kc() { "${within[@]}" "$kubectl" --kubeconfig "$run/$1.kubeconfig" "${@:2}"; }

configuration() {
    local number=$1 node
    echo "kind: Cluster"
    echo "apiVersion: kind.x-k8s.io/v1alpha4"
    echo "networking: {podSubnet: 10.$((10 + number)).0.0/16, serviceSubnet: 10.$((110 + number)).0.0/16, kubeProxyMode: nftables, disableDefaultCNI: $own_engine}"
    echo "nodes:"
    cat <<EOF
- role: control-plane
  extraMounts: [{hostPath: $PWD/audit.yaml, containerPath: /etc/kubernetes/audit/policy.yaml, readOnly: true}]
  kubeadmConfigPatches:
  - |
    kind: ClusterConfiguration
    apiServer:
      extraArgs: {audit-policy-file: /etc/kubernetes/audit/policy.yaml, audit-log-path: /var/log/kubernetes/audit.log}
      extraVolumes:
      - {name: audit-policy, hostPath: /etc/kubernetes/audit, mountPath: /etc/kubernetes/audit, readOnly: true}
      - {name: audit-log, hostPath: /var/log/kubernetes, mountPath: /var/log/kubernetes, pathType: DirectoryOrCreate}
EOF
    for node in $(seq 2 "$nodes"); do echo "- {role: worker}"; done
}

# Where kind's own network cannot be had: a bridge in each node, and routes between them.
network() {
    local name=$1 pods=$2 list node cidr address other range via
    for _ in $(seq 100); do
        # The ranges are handed out a moment after the nodes have come.
        list=$(kc "$name" get nodes -o jsonpath='{range .items[*]}{.metadata.name} {.spec.podCIDR} {.status.addresses[0].address}{"\n"}{end}')
        awk 'NF < 3 { short = 1 } END { exit short || !NR }' <<<"$list" && break
        sleep 0.3
    done
    while read -r node cidr address; do
        docker exec -i "$node" sh -c "cat >/etc/cni/net.d/10-weft-kind.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "weft-kind", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$cidr"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
        docker exec "$node" iptables -t nat -A POSTROUTING -s "$pods" ! -d "$pods" -o eth0 -j MASQUERADE
        while read -r other range via; do
            [ "$node" = "$other" ] || docker exec "$node" ip route replace "$range" via "$via"
        done <<<"$list"
    done <<<"$list"
}

up() {
    prepare
    mkdir -p "$run"
    local number name start
    for number in $(seq "$clusters"); do
        name=weft-$number
        start=$SECONDS
        if "$kind_program" get clusters 2>/dev/null | grep -qx "$name"; then
            echo "cluster $name is there already"
        else
            echo "cluster $name: $nodes nodes of Kubernetes $kubernetes"
            configuration "$number" >"$run/$name.yaml"
            "${within[@]}" "$kind_program" create cluster --name "$name" --image "$image" --config "$run/$name.yaml" \
                --kubeconfig "$run/$name.kubeconfig" --quiet
            if $own_engine; then network "$name" "10.$((10 + number)).0.0/16"; fi
            kc "$name" wait --for=condition=Ready node --all --timeout=120s >/dev/null
            kc "$name" -n kube-system rollout status deployment/coredns --timeout=120s >/dev/null
            echo "cluster $name is ready after $((SECONDS - start)) s"
        fi
        echo "  ${within[*]} $kubectl --kubeconfig $run/$name.kubeconfig get pods -A"
    done
}

down() {
    if $own_engine; then
        ./engine.sh stop
    else
        kind get clusters | grep '^weft-' | xargs -r kind delete clusters
        rm -rf "$run"
    fi
}

"$1"
