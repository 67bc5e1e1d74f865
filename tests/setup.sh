#!/usr/bin/env bash
# Installs what the tests need: clients and servers that others wrote.
set -euo pipefail
cd "$(dirname "$0")/.."
examples/setup.sh test nghttp:nghttp2-client nghttpd:nghttp2-server mariadbd:mariadb-server \
    mariadb:mariadb-client nc:netcat-openbsd python3:python3 openssl:openssl
if ! command -v go >/dev/null; then
    echo "make test needs Go 1.26 for the tools that come as Go modules: install it from go.dev" >&2
    exit 1
fi
# Built once, outside the tree.
tools=${XDG_CACHE_HOME:-$HOME/.cache}/weft/tools
mkdir -p "$tools"
[ -x "$tools/grpcurl" ] || GOBIN=$tools go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
[ -x "$tools/h2spec" ] || GOBIN=$tools go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
[ -x "$tools/helm" ] || GOBIN=$tools CGO_ENABLED=0 go install helm.sh/helm/v3/cmd/helm@v3.22.0
collector=otel-collector-$(cat tests/otel-collector/* | sha256sum | cut -c1-16)
if [ ! -x "$tools/$collector" ]; then
    echo "building an OpenTelemetry collector (kept in $tools)"
    go build -C tests/otel-collector -trimpath -ldflags='-s -w' -o "$tools/$collector" .
    ln -sf "$collector" "$tools/otel-collector"
fi
