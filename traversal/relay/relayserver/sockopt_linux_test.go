package relayserver

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestSocketsAreTuned(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	addr, config := serveFor(t, s, true)
	p := mustDial(t, s, addr, config)
	p.sync()
	for _, c := range serverConns(s) {
		raw, err := tcpOf(c.conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			for name, want := range map[int]int{unix.TCP_USER_TIMEOUT: 15000, unix.TCP_NOTSENT_LOWAT: unsentLimit, unix.TCP_KEEPIDLE: 60} {
				if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, name); got != want || err != nil {
					t.Errorf("option %d is %d, want %d (%v)", name, got, want, err)
				}
			}
		})
	}
}

func serverConns(s *Server) (all []*client) {
	s.clients.each(func(c *client) { all = append(all, c) })
	return all
}
