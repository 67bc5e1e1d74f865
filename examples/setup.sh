#!/usr/bin/env bash
# Installs from Debian what is missing, and says what.
# Usage: setup.sh PURPOSE [COMMAND:PACKAGE...]
set -euo pipefail
purpose=$1
shift
if [ "$(id -u)" != 0 ]; then
    echo "make $purpose needs root, for network namespaces and redirect rules: run it with sudo" >&2
    exit 1
fi
missing=()
for pair in ip:iproute2 iptables-restore:iptables setpriv:util-linux curl:curl cc:gcc "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing from Debian: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
