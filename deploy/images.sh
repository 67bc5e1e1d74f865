#!/usr/bin/env bash
# Packs the programs of target/release into container images, without an engine
# and without a registry: target/images/NAME.tar (OCI), the same bytes for the
# same programs. deploy/Dockerfile makes the same images with an engine.
# Usage: images.sh [FOLDER of the programs]
set -euo pipefail
cd "$(dirname "$0")/.."
programs=${1:-target/release}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
mkdir -p target/images
pack() { deploy/image.py "target/images/$1.tar" "docker.io/weft/$1:$version" --user "$2" --entrypoint "/$3" "${@:4}"; }
pack control-plane 65532 weft-control-plane "$programs/weft-control-plane=/weft-control-plane"
pack injector 65532 weft-injector "$programs/weft-injector=/weft-injector"
pack cni 0 weft-cni-agent "$programs/weft-cni-agent=/weft-cni-agent" "$programs/weft-cni=/weft-cni"
pack proxy 1337 weft-proxy "$programs/weft-proxy=/weft-proxy" "$programs/weft-init=/weft-init"
pack shop 65532 usr/local/bin/shop "$programs/shop=/usr/local/bin/shop"
