#!/usr/bin/env bash
# Builds what a kind cluster is made of on a machine that reaches no image
# registry: Kubernetes, etcd and CoreDNS from their Go modules, and from these,
# kind's own files and Debian, a node image. Each part is kept outside the tree,
# under the hash of what it is made from, and made again when it is absent.
# Prints the name of the node image.
set -euo pipefail
cd "$(dirname "$0")"
. ./place.env
. ./versions.env
export CGO_ENABLED=0 DOCKER_HOST=$socket
mkdir -p $cache/bin

hash_of() { cat "$@" | sha256sum | cut -c1-12; }

# make NAME HASH COMMAND...: runs the command, which makes $out, unless that is there.
make() {
    local name=$1 hash=$2
    shift 2
    out=$cache/bin/$name-$hash
    [ -e "$out" ] && return
    echo "kind: building $name (kept in $cache)" >&2
    rm -rf "$out.part"
    out=$out.part "$@" >&2
    mv "$out.part" "$out"
    # An older one is of no more use.
    find $cache/bin -maxdepth 1 -name "$name-????????????" ! -name "$name-$hash" -exec rm -rf {} +
}

go_build() { go build -C "$1" -trimpath -ldflags "$2" -o "$out" "$3"; }

stamp="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamp="$stamp -X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<$kubernetes)"
    stamp="$stamp -X $package.gitCommit=0 -X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
done
kubernetes_hash=$(hash_of kubernetes/* versions.env)
make kubernetes "$kubernetes_hash" go_build kubernetes "$stamp" .
components=$out
make kubeadm "$kubernetes_hash" go_build kubernetes "$stamp" k8s.io/kubernetes/cmd/kubeadm
kubeadm=$out
make etcd "$(hash_of etcd/*)" go_build etcd "-s -w" go.etcd.io/etcd/server/v3
etcd=$out
make coredns "$(hash_of coredns/*)" go_build coredns "-s -w" .
coredns=$out
compile_pause() { cc -O2 -static -o "$out" pause.c; }
make pause "$(hash_of pause.c)" compile_pause
pause=$out
install_kind() {
    GOBIN=$cache/bin/gobin go install "sigs.k8s.io/kind@$kind"
    mv $cache/bin/gobin/kind "$out"
}
make kind "$(hash_of <(echo $kind))" install_kind
kind_binary=$out
ln -sfn "$kind_binary" $cache/bin/kind
mkdir -p $cache/bin/kubernetes
ln -sfn "$components" $cache/bin/kubernetes/kubectl

debian_root() {
    debootstrap --variant=minbase \
        --include=systemd,systemd-sysv,iproute2,iptables,nftables,procps,kmod,ca-certificates,conntrack,ethtool,socat,mount,containerd,runc,containernetworking-plugins \
        bookworm "$out" >/dev/null
    rm -rf "$out"/var/cache/apt/archives/*.deb "$out"/var/lib/apt/lists/*
}
make debian "$(hash_of <(declare -f debian_root))" debian_root
debian=$out

# The programs of the machine that kube-proxy calls, with their libraries.
proxy_tools() {
    local program library
    local programs=(/usr/sbin/xtables-nft-multi /usr/sbin/nft /usr/sbin/conntrack /usr/bin/busybox)
    for program in "${programs[@]}"; do echo "$(readlink -f "$program")=/usr/sbin/$(basename "$program")"; done
    for program in iptables ip6tables iptables-{save,restore} ip6tables-{save,restore}; do
        echo "/usr/sbin/$program->/usr/sbin/xtables-nft-multi"
    done
    echo "/bin/sh->/usr/sbin/busybox"
    for library in $(ldd "${programs[@]}" /usr/lib/x86_64-linux-gnu/xtables/*.so | grep -oE '/\S+\.so\S*' | grep -v : | sort -u); do
        echo "$(readlink -f "$library")=$library"
    done
    for library in /usr/lib/x86_64-linux-gnu/xtables/*.so; do echo "$library=$library"; done
}

pack_images() {
    mkdir -p "$out"
    local registry=registry.k8s.io names="" pauses="" files links=() name
    for name in apiserver controller-manager scheduler proxy; do
        names="$names,$registry/kube-$name:$kubernetes"
        links+=("/usr/local/bin/kube-$name->kubernetes")
    done
    for name in $pause_images; do pauses="$pauses,$registry/pause:$name"; done
    mapfile -t files < <(proxy_tools)
    ../../deploy/image.py "$out/kubernetes.tar" "${names#,},$registry/etcd:$etcd_image" \
        "$components=/usr/local/bin/kubernetes" "${links[@]}" "$etcd=/usr/local/bin/etcd" "${files[@]}"
    ../../deploy/image.py "$out/coredns.tar" $registry/coredns/coredns:$coredns_image --entrypoint /coredns "$coredns=/coredns"
    ../../deploy/image.py "$out/pause.tar" "${pauses#,}" --entrypoint /pause "$pause=/pause"
}

build_node() {
    local files=$out.d
    mkdir -p "$files"/{kind/manifests,bin,images}
    out=$files/images pack_images
    cp -r "$(go mod download -json "sigs.k8s.io/kind@$kind" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/images/base/files" "$files/base"
    chmod -R u+w "$files/base"
    sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$files/base/etc/containerd/config.toml"
    cp "$kubeadm" "$files/bin/kubeadm"
    cp "$components" "$files/bin/kubernetes"
    echo $kubernetes >"$files/kind/version"
    local what
    for what in cni storage; do
        # kind applies these; its own come from a registry.
        printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: no-default-%s, namespace: kube-system}\n' $what \
            >"$files/kind/manifests/default-$what.yaml"
    done
    cp node.Dockerfile "$files/Dockerfile"
    cp import-images.sh "$files/"
    printf "images\n" >"$files/.dockerignore"
    tar -C "$debian" -c . | docker import - weft/debian:current >/dev/null
    docker build --quiet --tag weft/node-empty "$files" >/dev/null
    docker rm --force weft-node-images >/dev/null 2>&1 || true
    docker run --name weft-node-images --privileged --volume "$files/images:/images:ro" --entrypoint /bin/bash \
        weft/node-empty /kind/import-images.sh
    docker commit --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' weft-node-images "$node_image" >/dev/null
    docker rm weft-node-images >/dev/null
    rm -rf "$files"
    echo "$node_image" >"$out"
}
key=$(hash_of build.sh ../../deploy/image.py node.Dockerfile import-images.sh versions.env <(echo "$components $kubeadm $etcd $coredns $pause $debian"))
node_image=weft/node:$kubernetes-$key
if ! docker image inspect "$node_image" >/dev/null 2>&1; then rm -f "$cache/bin/node-$key"; fi
make node "$key" build_node
echo "$node_image"
