package testnet

import (
	"fmt"
	"net/netip"
	"syscall"

	"culvert.dev/culvert/internal/packet"
)

// ICMPError is an ICMP error about a datagram that a socket sent, or a stream that could not be opened. It wraps the errno
// that Linux reports for it.
type ICMPError struct {
	From   netip.Addr     // who sent the error
	To     netip.AddrPort // where the datagram was sent to
	Family int            // 4 or 6: whose numbers those of ICMP are
	ICMP   packet.ICMP
}

func (e *ICMPError) Error() string {
	return fmt.Sprintf("%v: %v (ICMP %d/%d from %v)", e.To, e.Unwrap(), e.ICMP.Type, e.ICMP.Code, e.From)
}

// Unwrap returns the errno.
func (e *ICMPError) Unwrap() error {
	v := uint8(e.Family)
	switch {
	case e.ICMP == packet.PortUnreachable(v):
		return syscall.ECONNREFUSED
	case announcedMTU(v, e.ICMP) > 0:
		return syscall.EMSGSIZE
	case e.ICMP == packet.NetUnreachable(v):
		return syscall.ENETUNREACH
	default:
		return syscall.EHOSTUNREACH
	}
}

// TimeExceeded reports whether the datagram's hop limit was spent on the way.
func (e *ICMPError) TimeExceeded() bool {
	return e.Family == 4 && e.ICMP.Type == exceeded4 || e.Family == 6 && e.ICMP.Type == exceeded6
}

// Timeout and Temporary make it a net.Error that does not stop a reader.
func (e *ICMPError) Timeout() bool   { return false }
func (e *ICMPError) Temporary() bool { return true }
