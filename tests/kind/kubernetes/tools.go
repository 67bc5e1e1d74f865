//go:build tools

// What is built beside the components.
package main

import _ "k8s.io/kubernetes/cmd/kubeadm/app"
