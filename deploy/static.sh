#!/bin/sh
# A wrapper of rustc for this workspace's own crates: the programs that run in
# pods are linked statically, for their images hold nothing else. Whoever runs on
# the machine itself (meshctl, the demo, the benchmark) uses its libraries.
case ${CARGO_BIN_NAME:-} in
weft-proxy | weft-init | weft-cni | weft-cni-agent | weft-control-plane | weft-injector | shop)
    set -- "$@" -C target-feature=+crt-static
    ;;
esac
exec "$@"
