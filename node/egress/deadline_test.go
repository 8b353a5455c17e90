package egress

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

func TestAssociationHasReadDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Config{})
		defer e.Close()
		pc, err := e.Dialer(func() Rules { return Rules{} }).ListenPacket(t.Context(), &proxy.Request{})
		if err != nil {
			t.Fatal(err)
		}
		a := pc.(*association)
		read := func() error {
			_, _, err := a.ReadFrom(make([]byte, 10))
			return err
		}
		for range 2 {
			begin := time.Now()
			a.SetReadDeadline(begin.Add(time.Second))
			if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != time.Second {
				t.Errorf("after %v: %v", time.Since(begin), err)
			}
			if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the deadline: %v", err)
			}
			a.SetReadDeadline(begin) // past
			if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a deadline in the past: %v", err)
			}
		}
		a.SetReadDeadline(time.Time{})
		ended := make(chan error)
		go func() { ended <- read() }()
		synctest.Wait()
		a.SetReadDeadline(time.Now().Add(-time.Second)) // ends who waits already
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a deadline while reading: %v", err)
		}
		a.SetReadDeadline(time.Now().Add(time.Hour))
		go func() { ended <- read() }()
		synctest.Wait()
		a.Close()
		if err := <-ended; err == nil {
			t.Error("a closed association reads")
		}
	})
}

// Ports of the node itself at which nothing is published are remembered for a while, but not all of them.
func TestAssociationForgetsFailures(t *testing.T) {
	w := newAssociationOfOwnPorts(t)
	for port := range 2000 {
		w.WriteTo([]byte("x"), proxy.Target{Addr: ownAddr, Port: uint16(1 + port)})
		w.wg.Wait()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failed) > maxLegs {
		t.Errorf("%d failures are remembered", len(w.failed))
	}
}

var ownAddr = netip.MustParseAddr("100.64.0.1")

func newAssociationOfOwnPorts(t *testing.T) *association {
	e := New(Config{Self: func(a netip.Addr) bool { return a == ownAddr }})
	t.Cleanup(e.Close)
	pc, err := e.Dialer(func() Rules { return Rules{} }).ListenPacket(t.Context(), &proxy.Request{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*association)
}
