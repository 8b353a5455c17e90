package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

func TestDialledConnectionCarriesDataAndIsListed(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t)
		near, far := p.connect(t, p.listen(t, f.served()))
		if near.LocalAddr().String() != far.RemoteAddr().String() || near.RemoteAddr().String() != far.LocalAddr().String() {
			t.Errorf("%v to %v, the far end says %v to %v", near.LocalAddr(), near.RemoteAddr(), far.RemoteAddr(), far.LocalAddr())
		}
		want := randomBytes(1 << 20)
		go func() {
			near.Write(want)
			near.CloseWrite()
		}()
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		i := only(t, p.near, &FlowFilter{})
		if i.Key.Peer != nat.PeerSelf || i.Reply.Peer != 1 || i.Key.SrcAddr() != f.near || i.Key.DstAddrPort() != f.served() || i.Key != withPeer(i.Reply.Reverse(), nat.PeerSelf) {
			t.Errorf("the flow is %+v, answers %+v", i.Key, i.Reply)
		}
		if i.TCP != nat.TCPFinWait || i.State != nat.StateAssured || !i.Answered() {
			t.Errorf("state %v, %v", i.TCP, i.State)
		}
		if i.Original.Bytes < 1<<20 || i.Original.Packets < 700 || i.Answers.Packets == 0 || i.Answers.Bytes > i.Original.Bytes/2 {
			t.Errorf("counted %+v, answers %+v", i.Original, i.Answers)
		}
		if q := (FlowFilter{Peer: 1}); len(p.near.ListFlows(&q)) != 1 {
			t.Error("the flow is not found by its peer")
		}
		go func() {
			far.Write(want)
			far.Close()
		}()
		if got, err = io.ReadAll(near); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("back: %d bytes, %v", len(got), err)
		}
		near.Close()
		waitFor(t, "the flow to end", func() bool { return p.near.Flows().TCP == 0 })
	})
}

func withPeer(k packet.Key, peer uint16) packet.Key { k.Peer = peer; return k }

func TestStatesOfADialledConnection(t *testing.T) {
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	state := func(want nat.TCPState) {
		t.Helper()
		waitFor(t, want.String(), func() bool { return only(t, p.near, &FlowFilter{}).TCP == want })
	}
	state(nat.TCPEstablished)
	far.CloseWrite()
	state(nat.TCPCloseWait)
	near.Close()
	waitFor(t, "the end", func() bool { return p.near.Flows().TCP == 0 })
}

func TestDialRefused(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t)
		_, err := p.near.DialTCP(t.Context(), f.served()) // served, and nobody listens
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("served port: %v", err)
		}
		_, err = p.near.DialTCP(t.Context(), ap(f.far, 9))
		var op *net.OpError
		if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) || op.Op != "dial" || op.Addr.String() != ap(f.far, 9).String() {
			t.Errorf("unserved port: %v", err)
		}
		if n := p.near.table.Len(); n != 0 {
			t.Errorf("%d flows are left", n)
		}
	})
}

// dialWire dials where the test is the peer, and returns the SYN and how the dial ends.
func dialWire(t *testing.T, n *Net, w *wire, ctx context.Context, to netip.AddrPort) (syn []byte, result chan error) {
	t.Helper()
	result = make(chan error, 1)
	go func() {
		c, err := n.DialTCP(ctx, to)
		if err == nil {
			c.Abort()
		}
		result <- err
	}()
	waitFor(t, "a SYN", func() bool {
		for _, b := range w.take() {
			if p := decoded(t, b); p.TCPFlags&packet.TCPSyn != 0 && p.DstAddrPort() == to {
				syn = b
			}
		}
		return syn != nil
	})
	return syn, result
}

func decoded(t *testing.T, pkt []byte) *packet.Packet {
	t.Helper()
	return one(t, [][]byte{pkt})
}

// answer is an ICMP error about a packet, from a router behind the peer.
func answer(t *testing.T, pkt []byte, e packet.ICMP) []byte {
	p := decoded(t, pkt)
	return packet.AppendICMPError(nil, p, p.DstAddr(), e)
}

func TestDialAndICMPErrors(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	for _, c := range []struct {
		v         int
		typ, code uint8
		want      syscall.Errno
	}{
		{v: 4, typ: 3, code: 0, want: syscall.ENETUNREACH},
		{v: 4, typ: 3, code: 1, want: syscall.EHOSTUNREACH},
		{v: 4, typ: 3, code: 3, want: syscall.ECONNREFUSED},
		{v: 4, typ: 3, code: 9, want: syscall.EACCES},
		{v: 4, typ: 3, code: 10, want: syscall.EACCES},
		{v: 4, typ: 3, code: 13, want: syscall.EACCES},
		{v: 4, typ: 11, code: 0, want: syscall.EHOSTUNREACH},
		{v: 6, typ: 1, code: 0, want: syscall.ENETUNREACH},
		{v: 6, typ: 1, code: 1, want: syscall.EACCES},
		{v: 6, typ: 1, code: 3, want: syscall.EHOSTUNREACH},
		{v: 6, typ: 1, code: 4, want: syscall.ECONNREFUSED},
		{v: 6, typ: 3, code: 0, want: syscall.EHOSTUNREACH},
	} {
		to := ap(peerV6, 80)
		if c.v == 4 {
			to = ap(peerV4, 80)
		}
		syn, result := dialWire(t, n, w, t.Context(), to)
		w.send(answer(t, syn, packet.ICMP{Type: c.typ, Code: c.code}))
		err := <-result
		var icmp *ICMPError
		if !errors.Is(err, c.want) || !errors.As(err, &icmp) || icmp.From != to.Addr() {
			t.Errorf("type %d code %d: %v, want %v", c.typ, c.code, err, c.want)
		}
		if left := n.table.Len(); left != 0 {
			t.Errorf("type %d code %d: %d flows left", c.typ, c.code, left)
		}
	}
}

// An ICMP error is believed about a flow of its own sender only.
func TestDialAndICMPErrorOfAnotherPeer(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	ctx, cancel := context.WithCancel(t.Context())
	syn, result := dialWire(t, n, w, ctx, ap(peerV4, 80))
	p := decoded(t, syn)
	w.send(packet.AppendICMPError(nil, p, otherV4, packet.ICMP{Type: 3, Code: 1}))
	if n.Drops()["icmp-error"] != 1 {
		t.Errorf("drops %v", n.Drops())
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestDialIntoSilence(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	syn, result := dialWire(t, n, w, ctx, ap(peerV4, 80))
	err := <-result
	var ne net.Error
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("%v", err)
	}
	if n.table.Len() != 0 || len(n.stack.RegisteredEndpoints()) != 0 {
		t.Errorf("%d flows and %d endpoints left", n.table.Len(), len(n.stack.RegisteredEndpoints()))
	}
	// What comes too late finds nothing.
	p := decoded(t, syn)
	late := one(t, w.send(tcpPacket(p.DstAddrPort(), p.SrcAddrPort(), packet.TCPSyn|packet.TCPAck, 1, p.Seq+1)))
	if late.TCPFlags&packet.TCPRst == 0 {
		t.Error("a late SYN-ACK was not answered with a reset")
	}
}

func TestDialCancelledManyTimes(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	for range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		_, result := dialWire(t, n, w, ctx, ap(peerV4, 80))
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if n.table.Len() != 0 || len(n.stack.RegisteredEndpoints()) != 0 {
		t.Errorf("%d flows and %d endpoints left", n.table.Len(), len(n.stack.RegisteredEndpoints()))
	}
}

func TestDialToNobody(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	for _, c := range []struct {
		to   netip.AddrPort
		want []error
	}{
		{ap(outV4, 80), []error{ErrNoPeer, syscall.ENETUNREACH}},
		{ap(outV6, 80), []error{ErrNoPeer, syscall.ENETUNREACH}},
		{ap(nodeV4, 80), []error{ErrSelf}},
		{ap(nodeV6, 80), []error{ErrSelf}},
		{ap(netip.AddrFrom16(nodeV4.As16()), 80), []error{ErrSelf}},
		{ap(peerV4, 0), []error{syscall.EINVAL}},
		{netip.AddrPort{}, []error{syscall.EINVAL}},
	} {
		_, err := n.DialTCP(t.Context(), c.to)
		for _, want := range c.want {
			if !errors.Is(err, want) {
				t.Errorf("%v: %v, want %v", c.to, err, want)
			}
		}
	}
	v6, err := New(Config{MTU: 1420, Self: []netip.Addr{nodeV6}, Policy: testPolicy(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	defer v6.Close()
	if _, err := v6.DialTCP(t.Context(), ap(peerV4, 80)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("without an address: %v", err)
	}
	v6.Close()
	if _, err := v6.DialTCP(t.Context(), ap(peerV6, 80)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A port that the policy does not serve is open for the flow alone that was opened from it.
func TestPortOfADialledConnectionIsClosedToOthers(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	ctx, cancel := context.WithCancel(t.Context())
	syn, result := dialWire(t, n, w, ctx, ap(peerV4, 80))
	port := decoded(t, syn).SrcAddrPort()
	for _, from := range []netip.AddrPort{ap(peerV4, 81), ap(otherV4, 80)} {
		if got := w.send(tcpPacket(from, port, packet.TCPSyn, 1, 0)); len(got) != 1 || decoded(t, got[0]).TCPFlags&packet.TCPRst == 0 {
			t.Errorf("a SYN from %v: %d packets", from, len(got))
		}
	}
	cancel()
	<-result
}

func TestOwnFlowsAreCut(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  func(n *Net)
	}{
		{"policy", func(n *Net) {
			n.SetPolicy(testPolicy(t, func(c *filter.Config) { c.Routes = c.Routes[1:] }))
		}},
		{"flush", func(n *Net) { n.FlushFlows(&FlowFilter{Peer: 1, V: 4}) }},
		{"timeout", func(n *Net) { n.table.Expire(n.table.Now() + int64(3*time.Hour)) }},
		{"Reset", func(n *Net) { n.Reset() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t)
			near4, far4 := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
			near6, far6 := p.connect(t, p.listen(t, ap(peerV6, servedPort)))
			waiting := make(chan error, 1)
			go func() {
				_, err := near4.Read(make([]byte, 1))
				waiting <- err
			}()
			c.cut(p.near)
			if err := <-waiting; !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("read: %v", err)
			}
			if _, err := near4.Write([]byte("x")); !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("write: %v", err)
			}
			if _, err := far4.Read(make([]byte, 1)); c.name != "policy" && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the far end's read: %v", err) // without the peer's address the reset has nowhere to go
			}
			if c.name == "policy" || c.name == "flush" {
				go near6.Write([]byte("y"))
				if _, err := far6.Read(make([]byte, 1)); err != nil {
					t.Errorf("the other connection: %v", err)
				}
			}
		})
	}
}

func TestAcceptedConnectionsAreCut(t *testing.T) {
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	p.far.SetPolicy(testPolicy(t, func(c *filter.Config) {
		c.Self = []netip.Addr{peerV4, peerV6}
		c.Routes = []filter.Route{{Prefix: netip.PrefixFrom(nodeV4, 32), Peer: 1}}
		c.SelfPorts = nil
	}))
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("the accepted end: %v", err)
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the dialling end: %v", err)
	}
}

func TestCloseOfTheNetEndsOwnConnections(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	near, far := p.connect(t, l)
	ends := make(chan error, 2)
	for _, c := range []*Conn{near, far} {
		go func() { _, err := c.Read(make([]byte, 1)); ends <- err }()
	}
	p.near.Close()
	p.far.Close()
	for range 2 {
		if err := <-ends; err == nil || err == io.EOF {
			t.Errorf("read: %v", err)
		}
	}
}

// Own flows have the whole table, and make room for peers.
func TestOwnFlowsAtTheTablesLimit(t *testing.T) {
	n, err := New(Config{MTU: 1420, Self: []netip.Addr{nodeV4}, Policy: testPolicy(t, nil), Limits: Limits{Flows: 40}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c, err := n.ListenPacket(ap(nodeV4, 0))
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(n)
	for i := range 60 {
		if _, err := c.WriteToAddrPort([]byte("x"), ap(peerV4, uint16(1000+i))); err != nil {
			t.Fatal(i, err)
		}
	}
	if got := n.FlowsByPeer()[nat.PeerSelf]; got != 40 {
		t.Errorf("%d own flows, want 40", got)
	}
	w.take()
	for i := range 10 {
		w.send(udpPacket(ap(peerV4, uint16(1+i)), ap(nodeV4, 53), 64, []byte("x")))
	}
	if got := n.FlowsByPeer()[1]; got != 10 {
		t.Errorf("%d flows of the peer, want 10", got)
	}
}

func TestPortsAreDrawnAndShared(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	ctx, cancel := context.WithCancel(t.Context())
	var results []chan error
	near, last := 0, uint16(0)
	for i := range 200 {
		syn, result := dialWire(t, n, w, ctx, ap(peerV4, uint16(1+i)))
		results = append(results, result)
		port := decoded(t, syn).SrcPort
		if port < firstPort {
			t.Errorf("port %d", port)
		}
		if d := int(port) - int(last); d > -100 && d < 100 {
			near++
		}
		last = port
	}
	if near > 10 {
		t.Errorf("%d of 200 ports are close to the one before", near)
	}
	cancel()
	for _, r := range results {
		<-r
	}
	// A listener gets its port even where connections have it.
	l, err := n.ListenTCP(ap(nodeV4, uint16(last)))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
