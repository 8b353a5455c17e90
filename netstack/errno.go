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

// errnoOfICMP4 is what ICMP errors mean to who sent the packet, as far as programs tell them apart (RFC 1122 section 3.2.2.1). What
// policy forbids is EACCES.
func errnoOfICMP4(typ, code uint8) syscall.Errno {
	if typ != icmp4Unreachable {
		return syscall.EHOSTUNREACH
	}
	switch code {
	case 0, 6, 11:
		return syscall.ENETUNREACH
	case 2:
		return syscall.ENOPROTOOPT
	case 3:
		return syscall.ECONNREFUSED
	case icmp4FragNeeded:
		return syscall.EMSGSIZE
	case 9, 10, 13:
		return syscall.EACCES
	}
	return syscall.EHOSTUNREACH
}

// errnoOfICMP6 is the same for RFC 4443 section 3.
func errnoOfICMP6(typ, code uint8) syscall.Errno {
	switch {
	case typ == icmp6TooBig:
		return syscall.EMSGSIZE
	case typ != icmp6Unreachable:
		return syscall.EHOSTUNREACH
	case code == 0:
		return syscall.ENETUNREACH
	case code == 1, code == 5, code == 6:
		return syscall.EACCES
	case code == 4:
		return syscall.ECONNREFUSED
	}
	return syscall.EHOSTUNREACH
}
