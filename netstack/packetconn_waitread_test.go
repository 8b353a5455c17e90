package netstack

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// Whoever waits is told of a datagram, which a read then gets, of an ICMP error, of the deadline and of the end.
func TestPacketConnWaitRead(t *testing.T) {
	p := newPair(t)
	far := ap(peerV4, servedPort)
	client, server := packetConn(t, p.near, ap(nodeV4, 0)), packetConn(t, p.far, far)
	ended := make(chan error, 1)
	go func() { ended <- server.WaitRead() }()
	for range 2 {
		if _, err := client.WriteToAddrPort([]byte("ping"), far); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	for range 2 {
		for range 2 { // once more takes nothing
			if err := server.WaitRead(); err != nil {
				t.Fatal(err)
			}
		}
		if n, _, err := server.ReadFromAddrPort(b); string(b[:n]) != "ping" || err != nil {
			t.Fatalf("got %q, %v", b[:n], err)
		}
	}
	server.SetReadDeadline(time.Now().Add(time.Millisecond))
	if err := server.WaitRead(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
	server.SetReadDeadline(time.Time{})
	var all sync.WaitGroup
	for range 4 { // each who waits is told
		all.Go(func() {
			if err := server.WaitRead(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("at the end: %v", err)
			}
		})
	}
	server.Close()
	all.Wait()
}

func TestWaitReadTellsOfRefusals(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	c := packetConn(t, n, ap(nodeV4, 0))
	if _, err := c.WriteToAddrPort([]byte("q"), ap(peerV4, 7)); err != nil {
		t.Fatal(err)
	}
	w.send(packet.AppendICMPError(nil, one(t, w.take()), peerV4, packet.PortUnreachable(4)))
	if err := c.WaitRead(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}
