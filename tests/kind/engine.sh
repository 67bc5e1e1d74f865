#!/usr/bin/env bash
# A Docker Engine of its own, in network, mount and PID namespaces that end with
# it: the machine's network, mounts and settings stay as they were.
# Usage: engine.sh start|stop
set -euo pipefail
cd "$(dirname "$0")"
. ./place.env

# What kubelet sets for the whole machine.
settings="vm.overcommit_memory kernel.panic kernel.panic_on_oops"

running() {
    [ -e "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null && DOCKER_HOST=$socket docker version >/dev/null 2>&1
}

remove_containers() {
    DOCKER_HOST=$socket docker ps --all --quiet | DOCKER_HOST=$socket xargs -r docker rm --force --volumes >/dev/null
}

start() {
    if running; then return; fi
    stop # what a killed run has left
    mkdir -p "$run" "$cache/docker"
    # shellcheck disable=SC2086
    sysctl $settings >"$run/settings"
    ip netns add $netns
    ip -n $netns link set lo up
    setsid nsenter --net=/run/netns/$netns unshare --mount --pid --fork --kill-child --mount-proc \
        "$PWD/engine.sh" within >"$run/engine.log" 2>&1 </dev/null &
    echo $! >"$run/pid"
    for _ in $(seq 100); do
        if running; then
            remove_containers # of a killed run
            return
        fi
        sleep 0.2
    done
    echo "the engine does not answer; the end of $run/engine.log:" >&2
    tail -n 5 "$run/engine.log" >&2
    stop
    exit 1
}

# Runs in the new namespaces: /sys is the new network's, /run is the engine's own.
within() {
    mkdir -p "$run/cgroup" "$cache/docker"
    mount --rbind /sys/fs/cgroup "$run/cgroup"
    mount -t sysfs sysfs /sys
    mount --rbind "$run/cgroup" /sys/fs/cgroup
    mount -t tmpfs tmpfs /run
    mount --make-rshared /
    exec dockerd --data-root "$cache/docker" --exec-root /run/docker --pidfile /run/docker.pid --host "$socket" \
        --storage-driver overlay2 --log-level warn \
        --add-runtime less-resource="$PWD/runc-less-resource" --default-runtime less-resource
}

stop() {
    if [ -e "$run/pid" ]; then
        if running; then remove_containers; fi
        kill -9 "$(cat "$run/pid")" 2>/dev/null || true
        # The kernel ends everything in the PID namespace, a moment later.
        for _ in $(seq 50); do
            kill -0 "$(cat "$run/pid")" 2>/dev/null || break
            sleep 0.1
        done
    fi
    if [ -e /run/netns/$netns ]; then ip netns del $netns; fi
    if [ -e "$run/settings" ]; then sysctl -q -p "$run/settings"; fi
    for _ in $(seq 20); do
        find /sys/fs/cgroup -depth -type d -path '*/docker*' -exec rmdir {} + 2>/dev/null || true
        [ -z "$(find /sys/fs/cgroup -maxdepth 2 -name docker -print -quit)" ] && break
        sleep 0.2
    done
    rm -rf "$run"
}

"$1"
