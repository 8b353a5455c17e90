//go:build !linux

package stun

import (
	"errors"
	"net/netip"
)

func setOptions(fd int, a netip.Addr, reusePort bool) error {
	if reusePort {
		return errors.New("sharing a port is not supported on this system")
	}
	return nil
}

// serveSocket: on the wildcard address it is not known here which one a request was sent to, and the system chooses the source
// of the response.
func (s *Server) serveSocket(k *socket) error { return s.servePlain(k) }
