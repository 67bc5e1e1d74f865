#!/usr/bin/env bash
# Formatting, clippy with warnings as errors, and what the dependencies may be.
# --quick: without the last, which takes a tool that is built first.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
[ "${1:-}" != --quick ] || exit 0
# Built once, outside the tree.
version=0.20.2
tools=${XDG_CACHE_HOME:-$HOME/.cache}/weft/tools/cargo-deny-$version
if [ ! -x "$tools/bin/cargo-deny" ]; then
    echo "building cargo-deny $version (kept in $tools)"
    cargo install --quiet --locked --root "$tools" "cargo-deny@$version"
fi
export PATH=$tools/bin:$PATH
cargo deny --log-level error check bans licenses sources
# Advisories come from a database on the network: without it they are not checked.
if cargo deny --log-level off fetch db >/dev/null 2>&1; then
    cargo deny --log-level error check advisories
else
    echo "the database of advisories cannot be fetched: advisories are not checked" >&2
fi
