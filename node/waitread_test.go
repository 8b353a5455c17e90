package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"culvert.dev/culvert/internal/forward"
	"culvert.dev/culvert/internal/proxy"
)

// readWaiter is what spares who reads datagrams a buffer to wait with.
type readWaiter interface{ WaitRead() error }

// heapNow is the heap without garbage.
func heapNow() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // the second empties the pools
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestExitAssociationWaitRead(t *testing.T) {
	w := newExitWorld(t)
	server, err := net.ListenPacket("udp", netip.AddrPortFrom(w.reach, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	pc := w.associate(t)
	wait := pc.(readWaiter).WaitRead
	ended := make(chan error, 1)
	go func() { ended <- wait() }()
	at := server.LocalAddr().(*net.UDPAddr).AddrPort()
	to := proxy.Target{Addr: at.Addr(), Port: at.Port()}
	if err := pc.WriteTo([]byte("ping"), to); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	server.SetDeadline(time.Now().Add(5 * time.Second))
	_, from, err := server.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, answer := range []string{"one", "", "three"} { // an empty datagram is one too
		server.WriteTo([]byte(answer), from)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "", "three"} {
		for range 2 { // once more takes nothing
			if err := wait(); err != nil {
				t.Fatal(err)
			}
		}
		if n, src, err := pc.ReadFrom(b); err != nil || string(b[:n]) != want || src != to {
			t.Fatalf("%q from %v, %v, want %q", b[:n], src, err, want)
		}
	}
	go func() { ended <- wait() }()
	pc.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("at the end: %v", err)
	}
}

// Sessions of a forward that are silent hold no buffer for datagrams, whether their far end is a peer or an association.
func TestIdleDatagramSessionsCostLittle(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Skipf("no UDP on the loopback: %v", err)
	}
	defer server.Close()
	go func() {
		for b := make([]byte, 16); ; {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			server.WriteTo(b[:n], from)
		}
	}()
	p := newPair(t, "", fmt.Sprintf("[Publish]\nListen = 9/udp\nTo = %s\n", server.LocalAddr()))
	far := proxy.Target{Addr: netip.MustParseAddr("100.70.4.2"), Port: 9}
	for name, dial := range map[string]forward.Dial{
		"peer": func(ctx context.Context, _ forward.Origin) (net.Conn, error) {
			return p.alice.dialMesh(ctx, "udp", netip.AddrPortFrom(far.Addr, far.Port).String())
		},
		"association": func(ctx context.Context, _ forward.Origin) (net.Conn, error) {
			pc, err := p.alice.plain.ListenPacket(ctx, &proxy.Request{})
			if err != nil {
				return nil, err
			}
			return &association{PacketConn: pc, to: far}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			front, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			e := forward.NewUDP(forward.UDPConfig{Dial: dial})
			served := make(chan error)
			go func() { served <- e.Serve(front) }()
			defer func() {
				e.Close()
				<-served
			}()
			ask := func() { // by a session of its own
				c, err := net.Dial("udp4", front.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				c.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := c.Write([]byte("a")); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 16)); err != nil {
					t.Fatal(err)
				}
			}
			ask()
			const many = 100
			before := heapNow()
			for range many {
				ask()
			}
			if each := (int64(heapNow()) - int64(before)) / many; each > 48<<10 {
				t.Errorf("an idle session costs %d bytes", each)
			}
		})
	}
}
