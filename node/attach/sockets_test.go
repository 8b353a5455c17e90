package attach

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

type datagram struct {
	text   string
	socket uint32
	from   netip.AddrPort
}

func newSockets(t *testing.T) (*sockets, chan datagram) {
	t.Helper()
	got := make(chan datagram, 16)
	s, err := openSockets(func(b []byte, id uint32, from netip.AddrPort) { got <- datagram{string(b), id, from} }, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeAll)
	return s, got
}

func TestSocketsSendAndReceive(t *testing.T) {
	s, got := newSockets(t)
	id, port, err := s.open(4, 0)
	if err != nil {
		t.Fatal(err)
	}
	main, helper := netip.AddrPortFrom(loopback, s.port()), netip.AddrPortFrom(loopback, port)
	for _, ttl := range []uint8{0, 1, 64} {
		if err := s.send(0, []byte("to the helper"), helper, ttl); err != nil {
			t.Fatal(err)
		}
		if d := wait(t, got, "a datagram"); d != (datagram{"to the helper", id, main}) {
			t.Errorf("got %+v", d)
		}
		if err := s.send(id, []byte("to the main one"), main, ttl); err != nil {
			t.Fatal(err)
		}
		if d := wait(t, got, "a datagram"); d != (datagram{"to the main one", 0, helper}) {
			t.Errorf("got %+v", d)
		}
	}
	s.close(id)
	if err := s.send(id, []byte("x"), main, 0); !errors.Is(err, errNoSocket) {
		t.Errorf("from a closed socket: %v", err)
	}
	s.close(0)
	if err := s.send(0, []byte("still there"), main, 0); err != nil {
		t.Errorf("the main socket was closed: %v", err)
	}
}

func TestSocketsOfIPv6(t *testing.T) {
	s, got := newSockets(t)
	to := netip.AddrPortFrom(netip.IPv6Loopback(), s.port())
	if s.list[0].v6 == nil {
		t.Skip("this host has no IPv6")
	}
	for _, ttl := range []uint8{0, 1} {
		if err := s.send(0, []byte("six"), to, ttl); err != nil {
			t.Skipf("no IPv6 loopback: %v", err)
		}
		if d := wait(t, got, "a datagram"); d.text != "six" || d.from != to {
			t.Errorf("got %+v", d)
		}
	}
}

func TestSocketsRefuseWhatMakesNoSense(t *testing.T) {
	s, _ := newSockets(t)
	if _, _, err := s.open(5, 0); err == nil {
		t.Error("a socket of family 5")
	}
	id, port, err := s.open(4, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.open(4, port); err == nil {
		t.Error("one port twice")
	}
	if err := s.send(id, []byte("x"), endpoint("[::1]:9"), 0); !errors.Is(err, errNoSocket) {
		t.Errorf("IPv6 from an IPv4 socket: %v", err)
	}
	next, _, err := s.open(4, 0)
	if err != nil || next == id {
		t.Errorf("socket %d after %d, %v", next, id, err)
	}
	s.closeAll()
	if _, _, err := s.open(4, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
