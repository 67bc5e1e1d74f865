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
    local number=$1 node family=ipv4 pods=10.$((10 + $1)).0.0/16 services=10.$((110 + $1)).0.0/16
    # Dual stack, where the machine has IPv6.
    if [ -n "$(cat /proc/net/if_inet6 2>/dev/null)" ]; then
        family=dual pods+=,fd00:$((10 + number))::/56 services+=,fd00:$((110 + number))::/112
    fi
    echo "kind: Cluster"
    echo "apiVersion: kind.x-k8s.io/v1alpha4"
    echo "networking: {ipFamily: $family, podSubnet: '$pods', serviceSubnet: '$services', kubeProxyMode: nftables, disableDefaultCNI: $own_engine}"
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
    local name=$1 list node ranges addresses
    local ready='{ split($2, r, ","); split($3, a, ","); if (!length($2) || length(r) != length(a)) short = 1 } END { exit short || !NR }'
    for _ in $(seq 100); do
        # The ranges are handed out a moment after the nodes have come.
        list=$(kc "$name" get nodes -o go-template='{{range .items}}{{.metadata.name}} {{range $i, $c := .spec.podCIDRs}}{{if $i}},{{end}}{{$c}}{{end}} {{$n := 0}}{{range .status.addresses}}{{if eq .type "InternalIP"}}{{if $n}},{{end}}{{$n = 1}}{{.address}}{{end}}{{end}}{{"\n"}}{{end}}')
        awk "$ready" <<<"$list" && break
        sleep 0.3
    done
    while read -r node ranges addresses; do
        docker exec -i "$node" sh -c "cat >/etc/cni/net.d/10-weft-kind.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "weft-kind", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [$(sed -E 's/[^,]+/[{"subnet": "&"}]/g' <<<"$ranges")],
            "routes": [{"dst": "0.0.0.0/0"}$([[ $ranges != *:* ]] || echo ', {"dst": "::/0"}')]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
        routes "$node"
    done <<<"$list"
}

# From a node to the pods of the others, and out of the cluster.
routes() {
    local node=$1 other ranges addresses pods i
    while read -r other ranges addresses; do
        IFS=, read -ra ranges <<<"$ranges"
        IFS=, read -ra addresses <<<"$addresses"
        for i in "${!ranges[@]}"; do
            [ "$node" = "$other" ] || docker exec "$node" ip route replace "${ranges[$i]}" via "${addresses[$i]}"
        done
    done <<<"$list"
    pods=$(sed -n "s/.*podSubnet: '\([0-9./]*\).*/\1/p" "$run/$name.yaml")
    docker exec "$node" sh -c "iptables -t nat -C POSTROUTING -s $pods ! -d $pods -o eth0 -j MASQUERADE 2>/dev/null ||
        iptables -t nat -A POSTROUTING -s $pods ! -d $pods -o eth0 -j MASQUERADE"
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
            if $own_engine; then network "$name"; fi
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
