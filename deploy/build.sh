#!/usr/bin/env bash
# Builds every program into target/release. Those that run in pods are static:
# their images hold nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
static=(-- -C target-feature=+crt-static)
build() { cargo rustc --release --quiet --package "$1" --bin "$2" "${static[@]}"; }
cargo rustc --profile data-path --quiet --package weft-proxy --bin weft-proxy "${static[@]}"
build weft-cni-init weft-init
build weft-cni-init weft-cni
build weft-cni-agent weft-cni-agent
build weft-control-plane weft-control-plane
build weft-injector weft-injector
build shop shop
# Whoever runs on the machine itself uses its libraries.
cargo build --release --quiet --package meshctl --bin meshctl
cargo build --release --quiet --package shop --bin demo
cargo build --release --quiet --package weft-bench
ln -f target/data-path/weft-proxy target/release/weft-proxy
