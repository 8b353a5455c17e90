package relayd

import "syscall"

// files returns how many descriptors the process may have. The runtime has raised the soft limit to the hard one.
func files() uint64 {
	const fallback = 1024
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil {
		return fallback
	}
	return r.Cur
}

// clientsFor returns how many of the clients wanted have room among so many descriptors. A share is kept for connections that are no
// clients yet, and for everything else: without any left, not even the control socket would answer.
func clientsFor(wanted int, files uint64) int {
	const least, share = 64, 8
	kept := max(least, files/share)
	if files <= kept {
		return 1
	}
	return int(min(uint64(wanted), files-kept))
}
