#!/bin/bash
# Within the node image's container: gives its containerd the images of /images.
set -euo pipefail
containerd --log-level error &
for _ in $(seq 100); do
    ctr version >/dev/null 2>&1 && break
    sleep 0.1
done
for image in /images/*.tar; do ctr --namespace k8s.io images import "$image" >/dev/null; done
kill %1
wait
