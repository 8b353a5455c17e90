package netstack

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

type pinged struct {
	rtt time.Duration
	err error
}

// ping starts an echo and returns the request that it sends.
func ping(t *testing.T, n *Net, w *wire, to netip.Addr) (request []byte, result chan pinged, cancel context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	result = make(chan pinged, 1)
	go func() {
		rtt, err := n.Ping(ctx, to)
		result <- pinged{rtt, err}
	}()
	waitFor(t, "an echo request", func() bool {
		n.out.mu.Lock()
		defer n.out.mu.Unlock()
		return n.out.n > 0
	})
	pkts := w.take()
	if p := one(t, pkts); !isEchoRequest(p) || p.DstAddr() != to || len(p.Buf)-p.Data != selfEchoData || p.TTL != selfEchoHops {
		t.Fatalf("request %+v", p)
	}
	return pkts[0], result, cancel
}

func replyTo(request []byte) []byte {
	var p packet.Packet
	b := append([]byte(nil), request...)
	packet.Decode(&p, b)
	packet.EchoReplyInPlace(b, &p)
	return b
}

func TestPingGetsItsReply(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	for _, to := range []netip.Addr{peerV4, peerV6, otherV4} {
		request, result, _ := ping(t, n, w, to)
		if answers := w.send(replyTo(request)); len(answers) != 0 {
			t.Errorf("%s: a reply was answered with %d packets", to, len(answers))
		}
		if r := <-result; r.err != nil || r.rtt <= 0 || r.rtt > 5*time.Second {
			t.Errorf("%s: %v, %v", to, r.rtt, r.err)
		}
		if n.echoes.n.Load() != 0 || len(n.echoes.waiting) != 0 {
			t.Errorf("%s: requests are still held", to)
		}
		if d := n.Drops(); len(d) != 0 {
			t.Errorf("%s: drops %v", to, d)
		}
	}
}

// TestPingBelievesThePeerAlone has other peers answer: under their own address, and about a request that was not theirs.
func TestPingBelievesThePeerAlone(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	request, result, cancel := ping(t, n, w, peerV4)
	var p packet.Packet
	packet.Decode(&p, request)

	wrong := func(change func(b []byte)) []byte {
		b := replyTo(request)
		change(b)
		return b
	}
	w.send(
		echoReply(otherV4, nodeV4, p.SrcPort),
		echoReply(peerV4, nodeV4, p.SrcPort+1),
		wrong(func(b []byte) { b[len(b)-1] ^= 1 }), // the checksum
		packet.AppendICMPError(nil, &p, otherV4, packet.HostUnreachable(4)),
	)
	select {
	case r := <-result:
		t.Fatalf("ended by what is no reply of the peer's: %+v", r)
	default:
	}
	cancel()
	if r := <-result; !errors.Is(r.err, context.Canceled) {
		t.Errorf("cancelled: %v", r.err)
	}
	if n.echoes.n.Load() != 0 {
		t.Error("a cancelled request is still held")
	}
}

func echoReply(src, dst netip.Addr, id uint16) []byte {
	return replyTo(echoPacket(dst, src, id, 1, nil))
}

func TestPingEndsWithTheReason(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	for _, c := range []struct {
		to   netip.Addr
		e    func(v uint8) packet.ICMP
		want string
	}{
		{peerV4, packet.HostUnreachable, "echo to 100.64.9.2: 100.64.9.2 says: host unreachable"},
		{peerV4, packet.Prohibited, "echo to 100.64.9.2: 100.64.9.2 says: prohibited by its policy"},
		{peerV4, packet.TimeExceeded, "echo to 100.64.9.2: 100.64.9.2 says: time to live exceeded"},
		{peerV6, packet.HostUnreachable, "echo to fd7a:9::2: fd7a:9::2 says: host unreachable"},
		{peerV6, packet.NetUnreachable, "echo to fd7a:9::2: fd7a:9::2 says: no route"},
		{peerV6, packet.Prohibited, "echo to fd7a:9::2: fd7a:9::2 says: prohibited by its policy"},
		{peerV6, packet.TimeExceeded, "echo to fd7a:9::2: fd7a:9::2 says: hop limit exceeded"},
	} {
		request, result, _ := ping(t, n, w, c.to)
		var p packet.Packet
		packet.Decode(&p, request)
		w.send(packet.AppendICMPError(nil, &p, c.to, c.e(p.V)))
		r := <-result
		var e *ICMPError
		if !errors.As(r.err, &e) || r.err.Error() != c.want {
			t.Errorf("got %q, want %q", r.err, c.want)
		}
	}
	if d := n.Drops(); len(d) != 0 {
		t.Errorf("drops %v", d)
	}
}

func TestPingRefuses(t *testing.T) {
	ctx := context.Background()
	n := newTestNet(t, testPolicy(t, nil))
	if _, err := n.Ping(ctx, outV4); !errors.Is(err, ErrNoPeer) {
		t.Errorf("an address of no peer: %v", err)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := n.Ping(over, peerV4); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that is over: %v", err)
	}
	only6, err := New(Config{MTU: 1420, Self: []netip.Addr{nodeV6}, Policy: testPolicy(t, func(c *filter.Config) { c.Self = []netip.Addr{nodeV6} })})
	if err != nil {
		t.Fatal(err)
	}
	defer only6.Close()
	if _, err := only6.Ping(ctx, peerV4); !errors.Is(err, errNoSelf) {
		t.Errorf("IPv4 from a node without: %v", err)
	}
}

func TestPingsAreBounded(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	full := make(chan error, 2*maxSelfEchoes)
	for i := range 2 * maxSelfEchoes { // one more than the bound is refused; the peers' queues hold fewer packets than that
		to := peerV4
		if i%2 == 0 {
			to = otherV4
		}
		wg.Go(func() {
			_, err := n.Ping(ctx, to)
			full <- err
		})
	}
	for range maxSelfEchoes {
		if err := <-full; !errors.Is(err, errEchoLimit) && !errors.Is(err, errEchoNoRoom) {
			t.Errorf("refused for: %v", err)
		}
	}
	cancel()
	wg.Wait()
	if n.echoes.n.Load() != 0 || len(n.echoes.waiting) != 0 {
		t.Errorf("%d requests are still held", n.echoes.n.Load())
	}
}

func TestPingEndsWithTheNet(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	_, result, _ := ping(t, n, newWire(n), peerV4)
	n.Close()
	if r := <-result; !errors.Is(r.err, errDataPathEnd) {
		t.Errorf("got %v", r.err)
	}
	if _, err := n.Ping(context.Background(), peerV4); !errors.Is(err, errDataPathEnd) {
		t.Errorf("after Close: %v", err)
	}
}

// TestPingBetweenNets passes the packets of two data paths to each other: a node answers what a node asks.
func TestPingBetweenNets(t *testing.T) {
	a := newTestNet(t, testPolicy(t, nil))
	b, err := New(Config{MTU: 1420, Self: []netip.Addr{peerV4}, Policy: testPolicy(t, func(c *filter.Config) {
		c.Self = []netip.Addr{peerV4}
		c.Routes = []filter.Route{{Prefix: netip.PrefixFrom(nodeV4, 32), Peer: 1}}
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	wa, wb := newWire(a), newWire(b)
	request, result, _ := ping(t, a, wa, peerV4)
	answers := wb.send(request)
	one(t, answers)
	wa.send(answers...)
	if r := <-result; r.err != nil {
		t.Error(r.err)
	}
}

func TestPendingPingTakesNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	_, _, cancel := ping(t, n, w, peerV4)
	defer cancel()
	other := append(make([]byte, 16), echoReply(peerV4, nodeV4, 1)...)
	bufs := [][]byte{other}
	if avg := testing.AllocsPerRun(200, func() { n.dev.Write(bufs, 16) }); avg > 0 {
		t.Errorf("%v allocations per packet while a request is unanswered", avg)
	}
}
