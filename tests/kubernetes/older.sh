#!/usr/bin/env bash
# Builds the release before this one, for the tests of version skew, and prints
# the folder with its meshctl and its images. It is kept outside the tree, keyed
# by its commit. Prints nothing where the clone does not hold that release.
set -euo pipefail
cd "$(dirname "$0")/../.."
version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p'; }
version_at() { git show "$1:Cargo.toml" 2>/dev/null | version; }
current=$(version <Cargo.toml)

# The newest tag of another version; without tags, the last commit before the version changed.
find_older() {
    local tag commit next=HEAD
    for tag in $(git tag --list 'v*' --sort=-version:refname 2>/dev/null); do
        if [ "$tag" != "v$current" ]; then
            git rev-parse "$tag^{commit}"
            return
        fi
    done
    for commit in $(git log --format=%H -- Cargo.toml 2>/dev/null); do
        if [ "$(version_at "$commit")" != "$current" ]; then
            git rev-parse "$next^"
            return
        fi
        next=$commit
    done
}

build() {
    local place=$1 commit=$2 tree=$PWD/target/older
    echo "building Weft $(version_at "$commit") (kept in $place)" >&2
    rm -rf "$tree" "$place"
    mkdir -p "$tree" "$place/bin"
    git archive "$commit" | tar -x -C "$tree"
    # With the folder and the packages of this release: the libraries are built already.
    (
        cd "$tree"
        export RUSTC_WORKSPACE_WRAPPER=$OLDPWD/deploy/static.sh CARGO_TARGET_DIR=$OLDPWD/target
        cargo build --quiet --release --bins --package weft-proxy --package weft-cni-init --package weft-cni-agent \
            --package weft-control-plane --package weft-injector --package shop --package meshctl --package weft-bench
    )
    for program in weft-proxy weft-init weft-cni weft-cni-agent weft-control-plane weft-injector shop meshctl; do
        cp "target/release/$program" "$place/bin/$program"
    done
    # This release's programs again, in their places.
    deploy/build.sh
    "$tree/deploy/images.sh" "$place/bin" >&2
    mkdir "$place/images"
    mv "$tree"/target/images/{control-plane,injector,proxy}.tar "$place/images/"
    find "$place/bin" -type f ! -name meshctl -delete
    rm -rf "$tree"
    touch "$place/complete"
}

main() {
    local older place
    older=$(find_older)
    [ -n "$older" ] || return 0
    place=${XDG_CACHE_HOME:-$HOME/.cache}/weft/older/$older
    [ -e "$place/complete" ] || build "$place" "$older"
    echo "$place"
}

main
