package node

import (
	"syscall"

	"culvert.dev/culvert/netstack"
)

const (
	maxSockets    = 32768
	ownFiles      = 64 // descriptors for the tunnel, the control socket and the runtime
	fallbackFiles = 1024
)

// budget divides the descriptors that the process may have.
type budget struct {
	sockets int // of peers: TCP connections, UDP and echo mappings
	queries int // of DNS in flight, each with a socket of its own
}

// budgetOf divides files descriptors: an eighth for DNS, at most 1024, and the rest for what peers do.
func budgetOf(files uint64) budget {
	n := int(min(files, 1<<20))
	queries := min(max(n/8, 4), 1024)
	return budget{sockets: min(max(n-ownFiles-queries, 16), maxSockets), queries: queries}
}

// hostBudget reads the process's limit. The runtime has raised the soft limit to the hard one.
func hostBudget() budget {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil {
		return budgetOf(fallbackFiles)
	}
	return budgetOf(r.Cur)
}

func (b budget) limits() netstack.Limits { return netstack.Limits{Sockets: b.sockets} }
