#!/usr/bin/env bash
# Installs from Debian what is missing, and says what.
# Usage: setup.sh PURPOSE [WHAT:PACKAGE...]     WHAT: a command, or the path of a file
set -euo pipefail
purpose=$1
shift
if [ "$(id -u)" != 0 ]; then
    echo "make $purpose needs root, for network namespaces and redirect rules: run it with sudo" >&2
    exit 1
fi
missing=()
for pair in ip:iproute2 iptables-restore:iptables setpriv:util-linux curl:curl cc:gcc "$@"; do
    what=${pair%%:*}
    case $what in
    /*) [ -e "$what" ] || missing+=("${pair#*:}") ;;
    *) command -v "$what" >/dev/null || missing+=("${pair#*:}") ;;
    esac
done
if [ ${#missing[@]} -eq 0 ]; then exit; fi
echo "installing from Debian: ${missing[*]}"
# A server that a package brings must not be started as a service.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
