//go:build tools

// Package tools names what is built here: etcd, newer than Debian's, which lacks
// flags that kubeadm passes.
package tools

import _ "go.etcd.io/etcd/server/v3"
