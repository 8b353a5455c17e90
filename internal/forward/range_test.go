package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
)

func TestRange(t *testing.T) {
	for _, tt := range []struct {
		r     Range
		local uint16
		port  uint16
		ok    bool
	}{
		{Range{8000, 8010, 80}, 8000, 80, true},
		{Range{8000, 8010, 80}, 8010, 90, true},
		{Range{8000, 8010, 80}, 7999, 0, false},
		{Range{8000, 8010, 80}, 8011, 0, false},
		{Range{443, 443, 8443}, 443, 8443, true},
		{Range{1, 65535, 1}, 65535, 65535, true},
	} {
		if err := tt.r.Check(); err != nil {
			t.Errorf("%+v: %v", tt.r, err)
		}
		if port, ok := tt.r.Target(tt.local); port != tt.port || ok != tt.ok {
			t.Errorf("%+v of %d: got %d, %v", tt.r, tt.local, port, ok)
		}
	}
	for _, r := range []Range{{}, {0, 5, 5}, {5, 6, 0}, {6, 5, 1}, {1, 65535, 2}, {1, 2, 65535}} {
		if r.Check() == nil {
			t.Errorf("%+v: no error", r)
		}
	}
}

type closeCounter struct{ closed *int }

func (c closeCounter) Close() error {
	*c.closed++
	return nil
}

func TestOpenRangeIsAllOrNothing(t *testing.T) {
	closed := 0
	busy := errors.New("busy")
	_, err := OpenRange(65530, 65535, func(port uint16) (closeCounter, error) {
		if port == 65533 {
			return closeCounter{}, busy
		}
		return closeCounter{&closed}, nil
	})
	if !errors.Is(err, busy) || closed != 3 {
		t.Errorf("%v, %d closed", err, closed)
	}
	all, err := OpenRange(65530, 65535, func(uint16) (closeCounter, error) { return closeCounter{&closed}, nil })
	if err != nil || len(all) != 6 {
		t.Errorf("%d, %v", len(all), err)
	}
}

// TestRangeOfBothNetworks has one engine of each for several ports. The ports are the kernel's choice and so in no row; the
// range spans them all.
func TestRangeOfBothNetworks(t *testing.T) {
	r := Range{First: 1, Last: 65535, To: 1}
	asked := make(chan uint16, 10)
	dial := func(ctx context.Context, from Origin) (net.Conn, error) {
		port, ok := r.Target(from.Local.Port())
		if !ok {
			return nil, errors.New("out of range")
		}
		asked <- port
		return nil, net.UnknownNetworkError("none")
	}
	var listeners []net.Listener
	for range 3 {
		listeners = append(listeners, listenTCP(t, "127.0.0.1"))
	}
	f := serveTCP(t, TCPConfig{Dial: dial}, listeners...)
	for _, l := range listeners {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			io.ReadAll(c)
			c.Close()
		}
		if got, want := <-asked, addrPort(l.Addr()).Port(); got != want {
			t.Errorf("TCP: port %d, want %d", got, want)
		}
	}
	await(t, "three failures", func() bool { return f.Stats().DialFailures == 3 })

	u := NewUDP(UDPConfig{Dial: dial})
	done := make(chan error, 3)
	for range 3 {
		pc := listenUDP(t, "127.0.0.1")
		go func() { done <- u.Serve(pc) }()
		send(t, dialUDP(t, pc.LocalAddr()), []byte("x"))
		if got, want := <-asked, addrPort(pc.LocalAddr()).Port(); got != want {
			t.Errorf("UDP: port %d, want %d", got, want)
		}
	}
	u.Close()
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestAllowedPrefixes(t *testing.T) {
	from := []netip.Prefix{netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("10.0.0.0/8")}
	for client, want := range map[string]bool{"fe80::1%7": true, "10.1.2.3": true, "11.0.0.1": false, "::1": false} {
		if got := allowed(from, netip.MustParseAddr(client)); got != want {
			t.Errorf("%s: %v", client, got)
		}
	}
	if !allowed(nil, netip.MustParseAddr("::1")) || !allowed(from, netip.Addr{}) {
		t.Error("no prefixes and unix sockets allow")
	}
}
