package config

import (
	"io/fs"
	"net"
	"net/netip"
	"strconv"
)

// PortRange is the ports First to Last; both are set, and First is not above Last.
type PortRange struct{ First, Last uint16 }

// Len returns how many ports there are.
func (r PortRange) Len() int { return int(r.Last) - int(r.First) + 1 }

// String returns "80" or "8000-8010".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return strconv.Itoa(int(r.First)) + "-" + strconv.Itoa(int(r.Last))
}

func (r PortRange) overlaps(s PortRange) bool { return r.First <= s.Last && s.First <= r.Last }

// Listen is where a proxy or forward listens on this host.
type Listen struct {
	Network string         // "tcp", "udp" or "unix"
	Addr    netip.AddrPort // an invalid address stands for every one of the host, of both families; zero with Path
	Ports   PortRange      // from Addr's port on; zero with Path
	Path    string         // of a unix socket, absolute or relative to the working directory; "": none
	Mode    fs.FileMode    // of its file; 0: the default, which lets this process's user alone connect

	// Optional: one of the two loopback addresses that a bare port stands for. A host that has not this one is no fault.
	Optional bool
}

// At returns what net.Listen and net.ListenPacket take for one of the ports.
func (l Listen) At(port uint16) (network, address string) {
	switch a := l.Addr.Addr(); {
	case l.Path != "":
		return l.Network, l.Path
	case !a.IsValid():
		return l.Network, net.JoinHostPort("", strconv.Itoa(int(port)))
	case a.Is4():
		return l.Network + "4", netip.AddrPortFrom(a, port).String()
	default:
		return l.Network + "6", netip.AddrPortFrom(a, port).String()
	}
}

// String returns the listener as it is written in a configuration; "/udp" is behind one of UDP.
func (l Listen) String() string {
	if l.Path != "" {
		return "unix:" + l.Path
	}
	host := ""
	if a := l.Addr.Addr(); a.Is6() {
		host = "[" + a.String() + "]"
	} else if a.IsValid() {
		host = a.String()
	}
	s := host + ":" + l.Ports.String()
	if l.Network == "udp" {
		s += "/udp"
	}
	return s
}

// local reports whether only programs of this host reach it.
func (l Listen) local() bool { return l.Path != "" || l.Addr.Addr().IsLoopback() }

// overlaps reports whether both cannot listen at the same time.
func (l Listen) overlaps(m Listen) bool {
	if l.Path != "" || m.Path != "" {
		return l.Path == m.Path
	}
	if l.Network != m.Network || !l.Ports.overlaps(m.Ports) {
		return false
	}
	a, b := l.Addr.Addr(), m.Addr.Addr()
	if !a.IsValid() || !b.IsValid() {
		return true
	}
	return a.BitLen() == b.BitLen() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}
