package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// carried is what has passed the peer's own interface: what counters must come to when there is one flow.
func (p *testPeer) carried() (sent, received FlowCount) {
	s := p.stack.NICInfo()[nic].Stats
	return FlowCount{s.Tx.Packets.Value(), s.Tx.Bytes.Value()}, FlowCount{s.Rx.Packets.Value(), s.Rx.Bytes.Value()}
}

// only returns the one flow that q chooses.
func only(t *testing.T, n *Net, q *FlowFilter) FlowInfo {
	t.Helper()
	list := n.ListFlows(q)
	if len(list) != 1 {
		t.Fatalf("%d flows, want one: %+v", len(list), list)
	}
	return list[0]
}

// waitFor polls: what is asked for happens on other goroutines.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func TestTCPCountersAreWhatThePeerSees(t *testing.T) {
	host := hostAddr(t)
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	to := listen(t, host, func(c *net.TCPConn) {
		io.Copy(io.Discard, io.LimitReader(c, 300_000))
		c.Write(randomBytes(700_000))
		io.Copy(io.Discard, c)
		c.Close()
	})
	c, err := p.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(randomBytes(300_000))
	if _, err := io.ReadFull(c, make([]byte, 700_000)); err != nil {
		t.Fatal(err)
	}
	f := only(t, n, &FlowFilter{})
	if f.TCP != nat.TCPEstablished || f.State != nat.StateAssured || !f.Answered() || f.Key.Peer != 1 {
		t.Errorf("got %v, %v, peer %d", f.TCP, f.State, f.Key.Peer)
	}
	if f.Reply.Src != to.Addr().As16() || f.Reply.SrcPort != to.Port() || f.Reply.DstAddr() != host || f.Reply.DstPort == 0 {
		t.Errorf("reply tuple %v > %v, want the host's own socket as destination", f.Reply.SrcAddrPort(), f.Reply.DstAddrPort())
	}
	var sent, received FlowCount
	waitFor(t, "counters equal to the peer's own", func() bool {
		f = only(t, n, &FlowFilter{})
		sent, received = p.carried()
		return f.Original == sent && f.Answers == received
	})
	if received.Bytes < 700_000 || received.Packets < 500 {
		t.Errorf("the peer got %+v: the test has no segments", received)
	}
	c.Close()
	waitFor(t, "TIME_WAIT", func() bool { return only(t, n, &FlowFilter{}).TCP == nat.TCPTimeWait })
	outside := f.Reply
	if f = only(t, n, &FlowFilter{}); f.Left > 31*time.Second {
		t.Errorf("a finished connection stays for %v", f.Left)
	}
	if f.Reply != outside {
		t.Errorf("finished, its reply tuple is %v > %v, was %v", f.Reply.SrcAddrPort(), f.Reply.DstAddrPort(), outside.DstAddrPort())
	}
}

func TestDatagramAndEchoCounters(t *testing.T) {
	host := hostAddr(t)
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	c := p.udp(t, 5353)
	to := echoUDP(t, host)
	for _, size := range []int{1, 700, 1392} {
		c.WriteTo(make([]byte, size), net.UDPAddrFromAddrPort(to))
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, _, err := c.ReadFrom(make([]byte, 2000)); err != nil {
			t.Fatal(err)
		}
	}
	sent, received := p.carried()
	if f := only(t, n, &FlowFilter{}); f.Original != sent || f.Answers != received || f.TCP != nat.TCPNone {
		t.Errorf("got %+v and %+v, want %+v and %+v", f.Original, f.Answers, sent, received)
	}
}

// The states of a connection come in order, whoever ends it.
func TestTCPStatesOfAnExitConnection(t *testing.T) {
	host := hostAddr(t)
	for name, c := range map[string]struct {
		server func(*net.TCPConn)
		client func(*gonet.TCPConn)
		want   []nat.TCPState
	}{
		"the peer closes first": {
			func(c *net.TCPConn) { io.Copy(io.Discard, c); c.Close() },
			func(c *gonet.TCPConn) {
				c.CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			},
			[]nat.TCPState{nat.TCPSynSent, nat.TCPSynRecv, nat.TCPEstablished, nat.TCPCloseWait, nat.TCPLastAck, nat.TCPTimeWait},
		},
		"the server closes first": {
			func(c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c); c.Close() },
			func(c *gonet.TCPConn) {
				io.Copy(io.Discard, c)
				c.Close()
			},
			[]nat.TCPState{nat.TCPSynSent, nat.TCPSynRecv, nat.TCPEstablished, nat.TCPFinWait, nat.TCPLastAck, nat.TCPTimeWait},
		},
		"the server resets": {
			func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0); c.Close() },
			func(c *gonet.TCPConn) {
				c.Write([]byte("x"))
				io.Copy(io.Discard, c)
				c.Close()
			},
			[]nat.TCPState{nat.TCPSynSent, nat.TCPSynRecv, nat.TCPEstablished, nat.TCPClose},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNet(t, testPolicy(t, nil))
			p := newTestPeer(t, n)
			w := n.WatchFlows(&FlowFilter{Protos: []uint8{packet.ProtoTCP}}, 100)
			defer w.Close()
			conn, err := p.dial(t, listen(t, host, c.server))
			if err != nil {
				t.Fatal(err)
			}
			c.client(conn)
			var got []nat.TCPState
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			for len(got) == 0 || got[len(got)-1] != c.want[len(c.want)-1] {
				e, missed, err := w.Next(ctx)
				if err != nil || missed > 0 {
					t.Fatalf("after %v: %v, %d missed", got, err, missed)
				}
				got = append(got, e.Flow.TCP)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// A connection of which one side has ended lives on with the transitory timeout, counted anew from its latest packet.
func TestHalfClosedConnectionLivesWhileItCarries(t *testing.T) {
	host := hostAddr(t)
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	more := make(chan struct{})
	to := listen(t, host, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		for range more {
			c.Write([]byte("x"))
		}
		c.Close()
	})
	c, err := p.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	waitFor(t, "CLOSE_WAIT", func() bool { return only(t, n, &FlowFilter{}).TCP == nat.TCPCloseWait })
	f := only(t, n, &FlowFilter{})
	if f.Left > 240*time.Second || f.Left < 230*time.Second {
		t.Errorf("half closed, %v are left, want the transitory 4 min", f.Left)
	}
	waitFor(t, "a later latest packet", func() bool { // the peer's acknowledgement of what it gets
		more <- struct{}{}
		c.Read(make([]byte, 1))
		return only(t, n, &FlowFilter{}).Last.After(f.Last.Add(time.Millisecond))
	})
	close(more)
}

func TestFlowsToTheNodeAreFollowed(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	l, err := n.ListenTCP(ap(nodeV4, 53))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	t.Cleanup(func() { l.Close() })
	c, err := p.dial(t, ap(nodeV4, 53))
	if err != nil {
		t.Fatal(err)
	}
	c.Write(randomBytes(50_000))
	io.ReadFull(c, make([]byte, 50_000))
	waitFor(t, "counters equal to the peer's own", func() bool {
		f := only(t, n, &FlowFilter{})
		sent, received := p.carried()
		return f.TCP == nat.TCPEstablished && f.Original == sent && f.Answers == received
	})
	c.Close()
	waitFor(t, "TIME_WAIT", func() bool { return only(t, n, &FlowFilter{}).TCP == nat.TCPTimeWait })

	c, err = p.dial(t, ap(nodeV4, 53))
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the handshake", func() bool { return len(n.ListFlows(&FlowFilter{TCP: nat.TCPEstablished})) == 1 })
	if got := n.FlushFlows(&FlowFilter{TCP: nat.TCPEstablished}); got != 1 {
		t.Errorf("flushed %d flows, want 1", got)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the peer's connection after the flush: %v, want a reset", err)
	}
	if c, err = p.dial(t, ap(nodeV4, 53)); err != nil {
		t.Errorf("the listener after the flush: %v", err)
	} else {
		c.Close()
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// A SYN from the ports of a connection that is over opens a flow of its own.
func TestReusedPortOfAServiceOfTheNode(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	from, to := ap(peerV4, 4000), ap(nodeV4, 53)
	l, err := n.ListenTCP(to)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.send(tcpPacket(from, to, packet.TCPSyn, 1, 0))
	first := only(t, n, &FlowFilter{})
	waitFor(t, "the handshake to begin", func() bool { return len(n.stack.RegisteredEndpoints()) == 2 }) // a listener ignores resets
	w.send(tcpPacket(from, to, packet.TCPRst, 2, 0))
	if f := only(t, n, &FlowFilter{}); f.TCP != nat.TCPClose {
		t.Fatalf("after a reset: %v", f.TCP)
	}
	waitFor(t, "the end of the connection", func() bool { return len(n.stack.RegisteredEndpoints()) == 1 })
	w.send(tcpPacket(from, to, packet.TCPSyn, 1000, 0))
	if f := only(t, n, &FlowFilter{}); f.TCP > nat.TCPSynRecv || !f.Started.After(first.Started) || f.Original.Packets != 1 {
		t.Errorf("after a new SYN: %+v, want a new flow", f)
	}
}

func TestFlushCutsBothSides(t *testing.T) {
	host := hostAddr(t)
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	ended := make(chan error, 1)
	to := listen(t, host, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	c, err := p.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	if got := n.FlushFlows(&FlowFilter{DstPort: to.Port() ^ 1}); got != 0 {
		t.Errorf("another port: %d flows flushed", got)
	}
	if got := n.FlushFlows(&FlowFilter{DstPort: to.Port()}); got != 1 {
		t.Errorf("%d flows flushed, want 1", got)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the peer: %v, want a reset", err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the server got a FIN, want a reset")
		}
	case <-time.After(5 * time.Second):
		t.Error("the server's connection goes on")
	}
	if n.table.Len() != 0 {
		t.Errorf("%d flows are left", n.table.Len())
	}
}

func TestFlowFilter(t *testing.T) {
	i := FlowInfo{
		Key:   packet.Key{Src: peerV4.As16(), Dst: otherV4.As16(), SrcPort: 1000, DstPort: 22, Peer: 1, Proto: packet.ProtoTCP, V: 4},
		Reply: packet.Key{Peer: 2}, TCP: nat.TCPEstablished,
	}
	for _, c := range []struct {
		q    FlowFilter
		want bool
	}{
		{FlowFilter{}, true},
		{FlowFilter{Peer: 1}, true}, {FlowFilter{Peer: 2}, true}, {FlowFilter{Peer: 3}, false},
		{FlowFilter{V: 4}, true}, {FlowFilter{V: 6}, false},
		{FlowFilter{Protos: []uint8{17, 6}}, true}, {FlowFilter{Protos: []uint8{17}}, false},
		{FlowFilter{Src: netip.MustParsePrefix("100.64.9.0/24")}, true}, {FlowFilter{Src: netip.MustParsePrefix("100.64.9.3/32")}, false},
		{FlowFilter{Dst: netip.MustParsePrefix("100.64.9.3/32")}, true}, {FlowFilter{Dst: netip.MustParsePrefix("::/0")}, false},
		{FlowFilter{SrcPort: 1000}, true}, {FlowFilter{SrcPort: 22}, false},
		{FlowFilter{DstPort: 22}, true}, {FlowFilter{DstPort: 1000}, false},
		{FlowFilter{TCP: nat.TCPEstablished}, true}, {FlowFilter{TCP: nat.TCPClose}, false},
		{FlowFilter{Peer: 1, DstPort: 23}, false},
	} {
		if got := c.q.Match(&i); got != c.want {
			t.Errorf("%+v: got %v", c.q, got)
		}
	}
}

func TestListIsInAStableOrder(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	for _, port := range []uint16{9, 3, 7, 5} {
		w.send(udpPacket(ap(peerV4, 700+port), ap(netip.MustParseAddr("203.0.113.9"), 53), 64, nil))
		w.send(tcpPacket(ap(peerV4, 600+port), ap(nodeV4, 53), packet.TCPSyn, 1, 0))
	}
	list := n.ListFlows(&FlowFilter{})
	if len(list) != 8 {
		t.Fatalf("%d flows, want 8", len(list))
	}
	for range 10 {
		again := n.ListFlows(&FlowFilter{})
		for i := range list {
			if list[i].Key != again[i].Key {
				t.Fatalf("the order changed at %d", i)
			}
		}
	}
	if list[0].Key.SrcPort != 603 || list[3].Key.SrcPort != 609 || list[4].Key.SrcPort != 703 {
		t.Errorf("got %d, %d, %d, want TCP before UDP, by port", list[0].Key.SrcPort, list[3].Key.SrcPort, list[4].Key.SrcPort)
	}
}

// A watcher that is too slow is told how many events it missed, at the place where they are missing.
func TestSlowWatcherIsToldWhatItMissed(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := n.WatchFlows(&FlowFilter{}, 3)
	defer w.Close()
	wire := newWire(n)
	open := func(from, count uint16) {
		for i := range count {
			wire.send(udpPacket(ap(peerV4, from+i), ap(nodeV4, 53), 64, nil)) // which nobody answers
		}
	}
	next := func() (FlowEvent, uint64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		e, missed, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return e, missed
	}
	open(1000, 10)
	for i := range uint16(3) {
		if e, missed := next(); missed != 0 || e.Kind != nat.EventNew || e.Flow.Key.SrcPort != 1000+i || e.Flow.State != nat.StateNew {
			t.Fatalf("event %d: %+v, %d missed", i, e, missed)
		}
	}
	if _, missed := next(); missed != 7 {
		t.Errorf("missed %d, want 7", missed)
	}
	if w.Pending() {
		t.Error("something is pending")
	}
	open(2000, 5)
	next()
	open(3000, 1)
	var got []uint64
	for range 4 {
		e, missed := next()
		if missed == 0 {
			missed = uint64(e.Flow.Key.SrcPort)
		}
		got = append(got, missed)
	}
	if want := []uint64{2001, 2002, 2, 3000}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v: two events are missing before the last", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := w.Next(ctx); err != context.Canceled {
		t.Errorf("after the end: %v", err)
	}
}

func TestDeniedPacketsAreTold(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	type denied struct {
		dst    netip.Addr
		reason filter.Reason
	}
	var got []denied
	n.ObserveDenied(func(k *packet.Key, d *filter.Decision, now int64) { got = append(got, denied{k.DstAddr(), d.Reason}) })
	w := newWire(n)
	w.send(tcpPacket(ap(peerV4, 1), ap(nodeV4, 54), packet.TCPSyn, 1, 0), tcpPacket(ap(peerV4, 1), ap(nodeV4, 53), packet.TCPSyn, 1, 0))
	if want := []denied{{nodeV4, filter.ReasonSelfPort}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	n.ObserveDenied(nil)
	w.send(tcpPacket(ap(peerV4, 1), ap(nodeV4, 54), packet.TCPSyn, 1, 0))
	if len(got) != 1 {
		t.Error("told after the end")
	}
	if resets, icmp := n.Answers(); resets != 2 || icmp != 0 {
		t.Errorf("answers: %d resets, %d ICMP, want 2 and 0", resets, icmp)
	}
}

// What counting costs gVisor's output: one exit connection's segment of 64 KiB, and a packet that is looked up.
func BenchmarkCountReply(b *testing.B) {
	n, err := New(Config{MTU: 1420, Self: []netip.Addr{nodeV4, nodeV6}, Policy: testPolicy(b, nil)})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	f := &nat.Flow{Key: packet.Key{
		Src: peerV4.As16(), Dst: netip.MustParseAddr("203.0.113.9").As16(), SrcPort: 1000, DstPort: 443, Peer: 1, Proto: packet.ProtoTCP, V: 4,
	}}
	c := &tcpFlow{n: n, flow: f}
	f.Owner = c
	if !n.table.Insert(f, n.table.Now()) {
		b.Fatal("no room")
	}
	pkt := segment(f.Key.Reverse(), 64000)
	defer pkt.DecRef()
	for _, owned := range []bool{true, false} {
		b.Run(map[bool]string{true: "connection", false: "lookup"}[owned], func(b *testing.B) {
			pkt.Owner = nil
			if owned {
				pkt.Owner = c
			}
			b.ReportAllocs()
			for b.Loop() {
				n.countReply(pkt, 1)
			}
		})
	}
	if packets, bytes := f.Counters(nat.Reply); packets == 0 || bytes/packets > 1420 {
		b.Errorf("counted %d packets of %d bytes", packets, bytes)
	}
}

// segment is a TCP segment as gVisor gives it to its link.
func segment(k packet.Key, size int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv4MinimumSize + header.TCPMinimumSize, Payload: buffer.MakeWithData(make([]byte, size)),
	})
	tcp := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize))
	tcp.Encode(&header.TCPFields{SrcPort: k.SrcPort, DstPort: k.DstPort, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck})
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	src, _ := fullAddress(k.SrcAddrPort())
	dst, _ := fullAddress(k.DstAddrPort())
	ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(pkt.Size()), TTL: 64, Protocol: packet.ProtoTCP, SrcAddr: src.Addr, DstAddr: dst.Addr})
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: 1368, L3HdrLen: header.IPv4MinimumSize}
	return pkt
}

func TestSegmentsAreCountedAsPackets(t *testing.T) {
	k := packet.Key{Src: nodeV4.As16(), Dst: peerV4.As16(), SrcPort: 1, DstPort: 2, Proto: packet.ProtoTCP, V: 4}
	for _, c := range []struct{ payload, packets int }{{0, 1}, {1, 1}, {1368, 1}, {1369, 2}, {2 * 1368, 2}, {64000, 47}} {
		pkt := segment(k, c.payload)
		packets, bytes := onWire(pkt)
		if packets != c.packets || bytes != c.payload+40*c.packets {
			t.Errorf("%d bytes: %d packets of %d bytes, want %d of %d", c.payload, packets, bytes, c.packets, c.payload+40*c.packets)
		}
		pkt.DecRef()
	}
}

// Between peers both directions are packets, and the state is read off them.
func TestFlowBetweenPeers(t *testing.T) {
	n := newTestNet(t, testPolicy(t, func(c *filter.Config) { c.Peers[0].AllowPeers = []uint16{2} }))
	w := newWire(n)
	from, to := ap(peerV4, 4000), ap(otherV4, 22)
	for _, step := range []struct {
		pkt  []byte
		want nat.TCPState
	}{
		{tcpPacket(from, to, packet.TCPSyn, 100, 0), nat.TCPSynSent},
		{tcpPacket(to, from, packet.TCPSyn|packet.TCPAck, 500, 101), nat.TCPSynRecv},
		{tcpPacket(from, to, packet.TCPAck, 101, 501), nat.TCPEstablished},
		{tcpPacket(to, from, packet.TCPFin|packet.TCPAck, 501, 101), nat.TCPFinWait},
	} {
		if out := w.send(step.pkt); len(out) != 1 {
			t.Fatalf("%v: %d packets passed on, want 1", step.want, len(out))
		}
		if f := only(t, n, &FlowFilter{}); f.TCP != step.want {
			t.Errorf("got %v, want %v", f.TCP, step.want)
		}
	}
	f := only(t, n, &FlowFilter{Peer: 2})
	if f.Key.Peer != 1 || f.Reply.Peer != 2 || f.Original.Packets != 2 || f.Answers.Packets != 2 || f.Reply.SrcAddrPort() != to {
		t.Errorf("got %+v", f)
	}
}
