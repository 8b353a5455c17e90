package egress

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// An association that is silent holds no buffer for datagrams: neither for its socket in the mesh, nor for one of the host.
func TestIdleAssociationsCostLittle(t *testing.T) {
	const many = 1000
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // the second empties the pools
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	t.Run("mesh", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, _ := packetWorld(t)
			d := w.egress().Dialer(via())
			before := live()
			for range many {
				pc := listenPacket(t, d)
				if got := ask(t, pc, "100.64.0.2:53", "a"); got != "re:a from 100.64.0.2:53" {
					t.Fatalf("got %q", got)
				}
			}
			synctest.Wait()
			if each := (live() - before) / many; each > datagramSize/2 {
				t.Errorf("an idle association costs %d bytes", each)
			}
		})
	})
	t.Run("host", func(t *testing.T) {
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
		w := newWorld(t)
		c := w.config()
		c.Direct = HostNet{Addrs: func() ([]netip.Addr, error) { return nil, nil }}
		e := New(c)
		defer e.Close()
		r := rules(t, "", "127.0.0.0/8 direct")
		d := e.Dialer(func() Rules { return r })
		to := target(server.LocalAddr().String())
		before := live()
		const few = 200 // a descriptor each
		for range few {
			pc := listenPacket(t, d)
			if err := pc.WriteTo([]byte("a"), to); err != nil {
				t.Fatal(err)
			}
			if n, _, err := pc.ReadFrom(make([]byte, 16)); n != 1 || err != nil {
				t.Fatalf("read %d bytes, %v", n, err)
			}
		}
		if each := (live() - before) / few; each > datagramSize/2 {
			t.Errorf("an idle association costs %d bytes", each)
		}
	})
}

// Whoever waits is told of a datagram, of the deadline and of the end, and what was waited for is read next.
func TestWaitRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		w.rtt = 50 * time.Millisecond
		for _, exits := range [][]string{nil, {"fra"}} {
			pc := listenPacket(t, w.egress().Dialer(via(exits...)))
			to, want := "100.64.0.2:53", "re:a"
			if exits != nil {
				to, want = "www.example:53", "fra:a"
			}
			wait := pc.(readWaiter).WaitRead
			ended := make(chan error, 1)
			go func() { ended <- wait() }()
			synctest.Wait()
			select {
			case err := <-ended:
				t.Fatalf("it waits for nothing: %v", err)
			default:
			}
			if err := pc.WriteTo([]byte("a"), target(to)); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			for range 2 { // once more finds the same one
				if err := wait(); err != nil {
					t.Fatal(err)
				}
			}
			b := make([]byte, 16)
			if n, _, err := pc.ReadFrom(b); string(b[:n]) != want || err != nil {
				t.Errorf("got %q, %v, want %q", b[:n], err, want)
			}
			d := pc.(interface{ SetReadDeadline(time.Time) error })
			d.SetReadDeadline(time.Now().Add(time.Second))
			if err := wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("at the deadline: %v", err)
			}
			d.SetReadDeadline(time.Time{})
			go func() { ended <- wait() }()
			synctest.Wait()
			pc.Close()
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("at the end: %v", err)
			}
		}
	})
}

// The ends of all legs can be waited for, where their sockets can.
func TestEndsOfLegsCanBeWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		r := rules(t, "fra", "198.51.100.0/24 direct")
		pc := listenPacket(t, w.egress().Dialer(func() Rules { return r }))
		for _, to := range []string{"100.64.0.2:53", "198.51.100.7:53", "www.example:53", "self:53"} {
			ask(t, pc, to, "a")
		}
		a := pc.(*association)
		a.mu.Lock()
		defer a.mu.Unlock()
		ways := map[Way]bool{}
		for k, l := range a.legs {
			ways[k.way] = true
			if _, ok := l.end.(readWaiter); !ok {
				t.Errorf("%T, by way %v, cannot be waited for", l.end, k.way)
			}
		}
		if len(ways) != 4 {
			t.Errorf("there are legs by the ways %v, want four", ways)
		}
	})
}

// The largest datagram arrives whole, and one of a stranger in front of it does not hold it up.
func TestLargeDatagramsBehindStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newWorld(t).egress()
		host := newNetwork(t)
		open := func(at string) net.PacketConn {
			pc, err := host.ListenPacket(netip.MustParseAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { pc.Close() })
			return pc
		}
		own, friend, stranger := open("192.0.2.1:1"), open("198.51.100.7:53"), open("198.51.100.66:53")
		end := openEnd{newSocket(own), newContacts()}
		if err := end.WriteTo([]byte("a"), target("198.51.100.7:53")); err != nil {
			t.Fatal(err)
		}
		large := bytes.Repeat([]byte("large"), 65507/5)
		stranger.WriteTo([]byte("injected"), own.LocalAddr())
		friend.WriteTo(large, own.LocalAddr())
		if d, err := e.receiveOne(end, end.WaitRead); d != nil || err != nil {
			t.Errorf("of the stranger: %v, %v", d, err)
		}
		d, err := e.receiveOne(end, end.WaitRead)
		if err != nil || !bytes.Equal(d.b, large) || d.from != (proxy.Target{Addr: netip.MustParseAddr("198.51.100.7"), Port: 53}) {
			t.Errorf("of the friend: %d bytes from %v, %v", len(d.b), d.from, err)
		}
		own.Close()
		if _, err := e.receiveOne(end, end.WaitRead); !errors.Is(err, net.ErrClosed) {
			t.Errorf("at the end: %v", err)
		}
	})
}
