#!/usr/bin/env bash
# Builds every program, or those that are named, into target/release.
# Usage: build.sh [PROGRAM...]
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTC_WORKSPACE_WRAPPER=$PWD/deploy/static.sh

# One call, so that what the programs share is compiled once.
programs=(weft-init weft-cni weft-cni-agent weft-control-plane weft-injector shop meshctl demo weft-bench)
packages=(weft-cni-init weft-cni-agent weft-control-plane weft-injector shop meshctl weft-bench)

build() {
    local profile=$1
    shift
    cargo build --quiet --profile "$profile" "$@"
}

main() {
    local wanted=("$@") program selected=()
    [ ${#wanted[@]} -gt 0 ] || wanted=(weft-proxy "${programs[@]}")
    for program in "${wanted[@]}"; do
        if [ "$program" = weft-proxy ]; then
            build data-path --package weft-proxy
            mkdir -p target/release
            ln -f target/data-path/weft-proxy target/release/weft-proxy
        else
            selected+=(--bin "$program")
        fi
    done
    if [ ${#selected[@]} -gt 0 ]; then
        build release "${packages[@]/#/--package=}" "${selected[@]}"
    fi
}

# Read as a whole before it runs: the file may change meanwhile.
main "$@"
