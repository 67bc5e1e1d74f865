#!/usr/bin/env bash
# Builds every program, or those that are named, into target/release. Those that
# run in pods are static: their images hold nothing else.
# Usage: build.sh [PROGRAM...]
set -euo pipefail
cd "$(dirname "$0")/.."

wanted() { [ ${#programs[@]} -eq 0 ] || [[ " ${programs[*]} " == *" $1 "* ]]; }
static() {
    if wanted "$2"; then cargo rustc --profile "${3:-release}" --quiet --package "$1" --bin "$2" -- -C target-feature=+crt-static; fi
}
# Whoever runs on the machine itself uses its libraries.
dynamic() {
    if wanted "$2"; then cargo build --release --quiet --package "$1" --bin "$2"; fi
}

main() {
    programs=("$@")
    static weft-proxy weft-proxy data-path
    if wanted weft-proxy; then
        mkdir -p target/release
        ln -f target/data-path/weft-proxy target/release/weft-proxy
    fi
    static weft-cni-init weft-init
    static weft-cni-init weft-cni
    static weft-cni-agent weft-cni-agent
    static weft-control-plane weft-control-plane
    static weft-injector weft-injector
    static shop shop
    dynamic meshctl meshctl
    dynamic shop demo
    dynamic weft-bench weft-bench
}

# Read as a whole before it runs: the file may change meanwhile.
main "$@"
