package stun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// maxFailures is how often in a row reading from a socket may fail: once may be want of memory, or what an ICMP error has left.
const maxFailures = 100

// servePlain reads and answers one datagram at a time, on any packetConn. It returns nil once that is closed.
func (s *Server) servePlain(k *socket) error {
	in := make([]byte, maxMessage+1)
	dst := make([]byte, 0, maxMessage)
	for failures := 0; ; {
		n, from, err := k.conn.ReadFromUDPAddrPort(in)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			if failures++; failures == maxFailures {
				return fmt.Errorf("stun: read %v: %w", k.local(), err)
			}
			continue
		}
		failures = 0
		s.count.bytesIn.Add(uint64(n))
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		at := place{site: k.site, port: k.port}
		if !k.addr.IsUnspecified() {
			at.addr = k.addr
		}
		if n > maxMessage {
			n = 0 // malformed, so to speak
		}
		if out, ok := s.respond(dst, in[:n], at, from, s.now()); ok {
			s.sendPlain(k, &out)
		}
	}
}

func (s *Server) sendPlain(k *socket, out *outgoing) {
	via := k
	if out.from.addr != k.addr || out.from.port != k.port {
		via = out.from.socket()
	}
	if via == nil {
		s.count.unsent.Add(1)
		return
	}
	if _, err := via.conn.WriteToUDPAddrPort(out.msg, out.to); err != nil {
		s.count.unsent.Add(1)
		return
	}
	s.count.bytesOut.Add(uint64(len(out.msg)))
}
