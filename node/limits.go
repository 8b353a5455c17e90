package node

import (
	"syscall"

	"culvert.dev/culvert/netstack"
)

const (
	maxSockets    = 32768
	maxServices   = 16384
	ownFiles      = 64 // descriptors for the tunnel, the control socket and the runtime
	fallbackFiles = 1024
)

// budget divides the descriptors that the process may have.
type budget struct {
	sockets int // of peers: TCP connections, UDP and echo mappings
	queries int // of DNS in flight, each with a socket of its own

	// Connections that peers may have through the node's SOCKS5, each with a socket. What the host's own programs open is bounded by
	// their listeners.
	services int
}

// budgetOf divides files descriptors: an eighth for DNS, at most 1024, an eighth for the SOCKS5 that peers use, and the rest for
// what their packets do.
func budgetOf(files uint64) budget {
	n := int(min(files, 1<<20))
	queries := min(max(n/8, 4), 1024)
	services := min(max(n/8, 4), maxServices)
	return budget{sockets: min(max(n-ownFiles-queries-services, 16), maxSockets), queries: queries, services: services}
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
