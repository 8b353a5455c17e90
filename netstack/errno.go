package netstack

import (
	"syscall"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/netstack/hostsock"
)

// localError is what a router would say where the host's own kernel refuses a destination; ok is false where it would
// say nothing, as for a lack of memory.
func localError(v uint8, e *hostsock.ICMPError) (packet.ICMP, bool) {
	if e.Errno == syscall.EMSGSIZE {
		if e.Info == 0 {
			return packet.ICMP{}, false
		}
		return packet.TooBig(v, int(e.Info)), true
	}
	return refusal(v, e.Errno)
}

// exhausted reports whether the host has run out of something: the peer may try again, and is told nothing.
func exhausted(errno syscall.Errno) bool {
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN:
		return true
	}
	return false
}

// refusal maps the kernel's refusal to send or connect to the ICMP error of a router in its place.
func refusal(v uint8, errno syscall.Errno) (packet.ICMP, bool) {
	switch errno {
	case syscall.ENETUNREACH, syscall.EAFNOSUPPORT:
		return packet.NetUnreachable(v), true
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN:
		return packet.HostUnreachable(v), true
	case syscall.EACCES, syscall.EPERM:
		return packet.Prohibited(v), true
	}
	return packet.ICMP{}, false
}
