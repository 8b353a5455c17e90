// Package hostsock is the host's side of an exit: ordinary, unprivileged sockets that carry the traffic of many peers
// fast. TCP is dialled so that a failure is known by the ICMP error behind it; UDP and ping sockets are served in
// batches by a Poller, with the kernel's segmentation offloads, and hand over the ICMP errors of the path. Stream moves bytes
// through connections that somebody else has made.
//
// It decides nothing: no policy, no address translation, no timeouts of flows. It works on Linux; elsewhere every
// constructor returns an error that wraps errors.ErrUnsupported.
//
// All methods are safe for concurrent use, a concurrent Close included. A descriptor is never used once it is closed.
//
//	p, err := hostsock.NewPoller(2)
//	...
//	u, err := p.OpenUDP(4, 40000, receiver) // receiver.Datagrams gets what arrives
//	...
//	sent, err := u.Send([]hostsock.Datagram{{To: dst, B: payload}})
package hostsock

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// ErrPingForbidden is the cause of a failed OpenPing where the host keeps ping sockets from this process's group
// (sysctl net.ipv4.ping_group_range, which covers IPv6 too).
var ErrPingForbidden = errors.New("ping sockets are forbidden (sysctl net.ipv4.ping_group_range)")

// ErrAgain is Stream.TryRecv's for a socket that has nothing to read.
var ErrAgain = errors.New("nothing to read yet")

// ICMPError is an ICMP error that came back for a datagram or a connection attempt, or a refusal of the own network
// stack, as the kernel keeps it on a socket's error queue (IP_RECVERR, IPV6_RECVERR). What is Local was told to the sender
// already, by Datagram.Err or the error of Ping.Send, and can come twice for one datagram.
type ICMPError struct {
	Type, Code uint8          // as on the wire, in the family of the socket; zero if Local
	Local      bool           // the own stack refused: Errno tells why
	Errno      syscall.Errno  // what the kernel makes of it: ECONNREFUSED, EHOSTUNREACH, EMSGSIZE, ...
	Info       uint32         // MTU for EMSGSIZE (fragmentation needed, packet too big, own route), else zero
	Offender   netip.Addr     // who sent it; invalid if Local
	To         netip.AddrPort // where the datagram went; port 0 for ping sockets
	Payload    []byte         // what the error quotes, behind the UDP header; for ping from the ICMP header on; empty if Local
}

// Receiver gets the events of one socket. Its methods run on the goroutine of the poller's loop, one at a time per
// socket; while one runs, the other sockets of the loop wait and their data stays in the kernel: that is back-pressure.
// Both may close any socket, the own one included, and open new ones. The first call can precede the return of Open.
type Receiver interface {
	// Datagrams hands over what arrived, in order. The slice is valid during the call; each Buf belongs to the callee
	// from then on, who must Release it.
	Datagrams(in []Inbound)

	// SocketError hands over one entry of the error queue. e and its Payload are valid during the call.
	SocketError(e *ICMPError)
}

// Inbound is one datagram, or several of the same sender in a row that the kernel put together.
type Inbound struct {
	From netip.AddrPort // port 0 for ping
	Buf  *Buf           // the payload is Buf.B[:N]; for ping it starts with the ICMP header
	N    int
	GSO  int   // size of each datagram in Buf.B[:N] but the last, which may be shorter; N if there is only one
	TTL  uint8 // hop limit it arrived with, 0 unknown
}

// Datagram is one UDP datagram to send.
type Datagram struct {
	To  netip.AddrPort
	B   []byte        // payload; read during Send only
	TTL uint8         // 0: the socket's default
	Err syscall.Errno // set by Send: zero if the kernel took it
}

// Stats counts what happened on all sockets of a Poller since it began.
type Stats struct {
	Truncated    uint64 // datagrams dropped because they were larger than any buffer
	SilentErrors uint64 // socket errors without an entry on the error queue, because that was full
	Stalls       uint64 // times a socket had to wait for a large buffer
}

// TCPOptions are the choices of one dial.
type TCPOptions struct {
	TTL     int           // hop limit of the connection, 0: the host's default
	Timeout time.Duration // for the handshake, 0: until the kernel gives up (about two minutes)
}

// DialError tells why a connection was not made. Exactly one of Errno and Err is set.
//
//	ECONNREFUSED                the target refused, by RST or, if ICMP is set, by port unreachable
//	EHOSTUNREACH, ENETUNREACH   no way there; ICMP tells type, code and offender, nil if the own host has no route
//	EACCES, EPERM               forbidden by the own host, or by the network if ICMP is set
//	EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS   the own host ran out of something
//	os.ErrDeadlineExceeded, ETIMEDOUT        silence until Timeout, or until the kernel gave up
//	context.Canceled, context.DeadlineExceeded  the caller's context
type DialError struct {
	Dst   netip.AddrPort
	Errno syscall.Errno
	Err   error      // why the dial was given up from this side
	ICMP  *ICMPError // the message behind Errno, nil if there was none; without Payload
}

func (e *DialError) Error() string {
	if m := e.ICMP; m != nil && !m.Local {
		return fmt.Sprintf("dial tcp %v: %v (icmp type %d code %d from %v)", e.Dst, e.Unwrap(), m.Type, m.Code, m.Offender)
	}
	return fmt.Sprintf("dial tcp %v: %v", e.Dst, e.Unwrap())
}

// Unwrap returns Errno or Err, whichever is set.
func (e *DialError) Unwrap() error {
	if e.Err != nil {
		return e.Err
	}
	return e.Errno
}

// Timeout reports whether the target stayed silent: neither an answer nor an ICMP error.
func (e *DialError) Timeout() bool {
	t, ok := e.Unwrap().(interface{ Timeout() bool })
	return ok && t.Timeout() && e.ICMP == nil
}
