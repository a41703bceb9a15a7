// Package bpf holds the tcx programs of the flow cache, as an object that clang made from flow.c.
//
// The object is committed, so that building and testing need no clang. `go generate` makes it anew, with the hash of
// its source beside it, by which a test notices an object older than its source.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package bpf -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" -type key -type sighting -type out -type in -type total -type outer Flow flow.c
//go:generate sh -c "sha256sum flow.c > flow.c.sha256"
