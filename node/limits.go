package node

import (
	"syscall"

	"culvert.dev/culvert/netstack"
)

const (
	maxSockets   = 32768
	ownFiles     = 64 // descriptors for the tunnel, the control socket, DNS upstreams and the runtime
	fallbackFile = 1024
)

// limits fits the data path to the descriptors the process may have. The runtime has raised the soft limit to the hard one.
func limits() netstack.Limits {
	files := uint64(fallbackFile)
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) == nil {
		files = r.Cur
	}
	sockets := int(min(files, maxSockets+ownFiles)) - ownFiles
	return netstack.Limits{Sockets: max(sockets, 16)}
}
