package attach

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// marker gives sockets the firewall mark that the device gives to its own. wg-quick has what bears it go past the tunnel, where
// everything else goes into the tunnel: relays and checks must not. It needs CAP_NET_ADMIN.
type marker struct {
	mark uint32
	warn func(error) // once
}

func newMarker(mark uint32, log *slog.Logger) marker {
	var once sync.Once
	return marker{mark, func(err error) {
		once.Do(func() {
			log.Warn("the device has a firewall mark that culvert may not set on its own sockets: where routes depend on it, relays and checks "+
				"would be reached through the tunnel; give culvert CAP_NET_ADMIN", "mark", mark, "err", err)
		})
	}}
}

// control is for net.ListenConfig and net.Dialer; nil without a mark.
func (m marker) control() func(network, address string, c syscall.RawConn) error {
	if m.mark == 0 {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			if err := setMark(fd, m.mark); err != nil {
				m.warn(err)
			}
		})
	}
}

const dialTime = 10 * time.Second

// dialTCP is for relay.PoolConfig; nil without a mark.
func (m marker) dialTCP() func(ctx context.Context, network, addr string) (net.Conn, error) {
	if m.mark == 0 {
		return nil
	}
	d := &net.Dialer{Timeout: dialTime, Control: m.control()}
	return d.DialContext
}

// listen opens a UDP socket on a free port of both families.
func (m marker) listen() (net.PacketConn, error) {
	lc := net.ListenConfig{Control: m.control()}
	return lc.ListenPacket(context.Background(), "udp", ":0")
}
