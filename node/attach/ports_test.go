package attach

import (
	"net"
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

// portsKit are ports with a fake relay on one side and a fake WireGuard on the other.
type portsKit struct {
	*ports
	relays    *fakeRelays
	wireguard *net.UDPConn
	sealed    chan sentDatagram
	delivered chan *port
}

func newPortsKit(t *testing.T) *portsKit {
	t.Helper()
	k := &portsKit{relays: newFakeRelays(), sealed: make(chan sentDatagram, 64), delivered: make(chan *port, 64)}
	k.ports = newPorts(k.relays,
		func(b []byte, from wgkey.Public) { k.sealed <- sentDatagram{from, string(b)} },
		func(p *port) { k.delivered <- p })
	k.wireguard = listenLoopback(t)
	k.ports.wireguard.Store(uint32(portOf(k.wireguard)))
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); k.run(done) }()
	t.Cleanup(func() { close(done); <-ended; k.closeAll() })
	return k
}

func listenLoopback(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (k *portsKit) add(t *testing.T, at netip.AddrPort) *port {
	t.Helper()
	p, err := k.open(newKey(t).Public(), at, 1420)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPortsShuttleBothWays(t *testing.T) {
	k := newPortsKit(t)
	one, two := k.add(t, netip.AddrPort{}), k.add(t, netip.AddrPort{})
	for _, p := range []*port{one, two} {
		if _, err := k.wireguard.WriteToUDPAddrPort([]byte("out"), p.addr); err != nil {
			t.Fatal(err)
		}
		if got := wait(t, k.relays.sent, "a datagram for the relay"); got != (sentDatagram{p.key, "out"}) {
			t.Errorf("to the relay: %v", got)
		}
		k.relays.come <- sentDatagram{p.key, "in"}
		b := make([]byte, 100)
		n, from, err := k.wireguard.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != "in" || from != p.addr {
			t.Errorf("to WireGuard: %q from %v, %v", b[:n], from, err)
		}
		if wait(t, k.delivered, "word of the delivery") != p {
			t.Error("delivered for another peer")
		}
		if p.rxPackets.Load() != 1 || p.rxBytes.Load() != 2 || p.txPackets.Load() != 1 || !p.here.Load() {
			t.Errorf("counters: %d %d %d", p.rxPackets.Load(), p.rxBytes.Load(), p.txPackets.Load())
		}
	}
}

func TestPortsKeepSealedMessagesFromWireGuard(t *testing.T) {
	k := newPortsKit(t)
	p := k.add(t, netip.AddrPort{})
	const message = "TS\U0001F4AC and more"
	k.relays.come <- sentDatagram{p.key, message}
	if got := wait(t, k.sealed, "a sealed message"); got != (sentDatagram{p.key, message}) {
		t.Errorf("got %v", got)
	}
	if p.rxPackets.Load() != 0 || !p.here.Load() {
		t.Error("the message counts as a datagram, or the peer as absent")
	}
}

// TestPortsRefuseStrangers has another program of the host send to a port: it must not speak for WireGuard.
func TestPortsRefuseStrangers(t *testing.T) {
	k := newPortsKit(t)
	p := k.add(t, netip.AddrPort{})
	stranger := listenLoopback(t)
	if _, err := stranger.WriteToUDPAddrPort([]byte("forged"), p.addr); err != nil {
		t.Fatal(err)
	}
	if _, err := k.wireguard.WriteToUDPAddrPort([]byte("true"), p.addr); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, k.relays.sent, "the datagram of WireGuard's"); got.text != "true" {
		t.Errorf("the relay got %q", got.text)
	}
	if n := k.dropped.foreign.Load(); n != 1 {
		t.Errorf("%d counted as foreign, want 1", n)
	}
}

func TestPortsDropWhatIsOfNoPeer(t *testing.T) {
	k := newPortsKit(t)
	p := k.add(t, netip.AddrPort{})
	k.relays.come <- sentDatagram{newKey(t).Public(), "who?"}
	k.relays.come <- sentDatagram{p.key, "hello"}
	wait(t, k.delivered, "the datagram of the peer's")
	if n := k.dropped.unknown.Load(); n != 1 {
		t.Errorf("%d counted as unknown, want 1", n)
	}
	k.close(p)
	k.deliver([]byte("late"), p.key)
	if n := k.dropped.unknown.Load(); n != 2 {
		t.Errorf("after its port was closed: %d counted as unknown, want 2", n)
	}
}

func TestPortsDropWhileWireGuardHasNoPort(t *testing.T) {
	k := newPortsKit(t)
	p := k.add(t, netip.AddrPort{})
	k.ports.wireguard.Store(0)
	k.deliver([]byte("x"), p.key)
	if n := k.dropped.down.Load(); n != 1 || p.rxPackets.Load() != 0 {
		t.Errorf("%d counted as down, %d as delivered", n, p.rxPackets.Load())
	}
}

// TestPortIsFoundAgain has a peer get the port again that a run which was killed has left in the device, but not one where somebody
// is.
func TestPortIsFoundAgain(t *testing.T) {
	k := newPortsKit(t)
	first := k.add(t, netip.AddrPort{})
	if first.addr.Addr() != portAddr {
		t.Skipf("this host has no %v", portAddr)
	}
	k.close(first)
	if p := k.add(t, first.addr); p.addr != first.addr {
		t.Errorf("got %v, want %v", p.addr, first.addr)
	}
	if p := k.add(t, first.addr); p.addr == first.addr {
		t.Error("two ports are one")
	}
}

// TestPortOfAnotherProgramIsLeftFree has an endpoint at a program of the operator's that does not run just now.
func TestPortOfAnotherProgramIsLeftFree(t *testing.T) {
	k := newPortsKit(t)
	program := listenLoopback(t)
	at := program.LocalAddr().(*net.UDPAddr).AddrPort()
	program.Close()
	if p := k.add(t, at); p.addr == at {
		t.Error("its port was taken")
	}
}
