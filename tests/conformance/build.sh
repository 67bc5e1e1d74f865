#!/usr/bin/env bash
# Builds the Gateway API conformance suite and the echo application that it
# expects, from their Go modules; keeps them outside the tree. Packs the image
# under the name that the suite's manifests use.
set -euo pipefail
cd "$(dirname "$0")"
cache=/var/cache/weft/conformance
mkdir -p $cache ../../target/images
export CGO_ENABLED=0
hash_of() { cat "$@" | sha256sum | cut -c1-12; }
suite=$cache/suite-$(hash_of suite/*)
if [ ! -x "$suite" ]; then
    echo "conformance: building the suite (kept in $cache)"
    rm -f $cache/suite-*
    go test -C suite -c -trimpath -ldflags='-s -w' -o "$suite" .
fi
ln -sf "$suite" $cache/suite
echo=$cache/echo-$(hash_of echo/*)
if [ ! -d "$echo" ]; then
    echo "conformance: building the echo application (kept in $cache)"
    rm -rf $cache/echo-*
    mkdir -p "$echo.part"
    for program in server client; do
        go build -C echo -trimpath -ldflags='-s -w' -o "$echo.part/$program" "istio.io/istio/pkg/test/echo/cmd/$program"
    done
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=echo \
        -keyout "$echo.part/cert.key" -out "$echo.part/cert.crt" 2>/dev/null
    chmod 644 "$echo.part/cert.key"
    mv "$echo.part" "$echo"
fi
../../deploy/image.py ../../target/images/echo.tar registry.k8s.io/gateway-api/echo-advanced:v1.5.1 \
    --entrypoint /usr/local/bin/server "$echo/server=/usr/local/bin/server" "$echo/client=/usr/local/bin/client" \
    "$echo/cert.crt=/cert.crt" "$echo/cert.key=/cert.key"
