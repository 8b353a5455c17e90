package netstack

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"
	"weak"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// closedBare is a connection that the server has closed first, and then the peer.
func closedBare(t *testing.T) (c *bareTCP, o *tcpFlow, fin []byte) {
	t.Helper()
	n := newTestNet(t, testPolicy(t, nil))
	c = openBare(t, n, listen(t, hostAddr(t), func(c *net.TCPConn) { c.Close() }))
	if p, _ := c.next(); p.TCPFlags&packet.TCPFin == 0 {
		t.Fatalf("flags %#x, want a FIN", p.TCPFlags)
	}
	o = c.flow().Owner.(*tcpFlow)
	fin = c.segment(packet.TCPFin|packet.TCPAck, "")
	c.got = append(c.got, c.w.send(fin)...)
	c.acknowledged()
	waitFor(t, "the end", func() bool { return tcpPhase(o.phase.Load()) == tcpTimeWait && c.flow().TCP() == nat.TCPTimeWait })
	return c, o, fin
}

// acknowledged takes the acknowledgment of everything.
func (c *bareTCP) acknowledged() {
	c.t.Helper()
	if p, data := c.next(); p.TCPFlags != packet.TCPAck || data != "" || p.Ack != c.seq || p.Seq != c.ack {
		c.t.Fatalf("flags %#x, sequence number %d, acknowledgment %d, want %d and %d", p.TCPFlags, p.Seq, p.Ack, c.ack, c.seq)
	}
}

func TestRepeatedFINIsAcknowledged(t *testing.T) {
	c, _, fin := closedBare(t)
	before, _ := c.flow().Counters(nat.Reply)
	for range 3 {
		c.got = append(c.got, c.w.send(fin)...)
		c.acknowledged()
	}
	if after, _ := c.flow().Counters(nat.Reply); after != before+3 {
		t.Errorf("%d packets are counted, want %d", after, before+3)
	}
}

// A sender repeats what it has sent first, which need not be the FIN.
func TestRepeatedDataIsAcknowledged(t *testing.T) {
	c, _, _ := closedBare(t)
	seq := c.seq
	for _, back := range []uint32{5, 100, 1 << 30} { // the FIN is one of them
		c.seq = seq - back
		repeated := c.segment(packet.TCPAck|packet.TCPPsh, "late")
		c.seq = seq
		c.got = append(c.got, c.w.send(repeated)...)
		c.acknowledged()
	}
}

func TestWhatComesLateIsDropped(t *testing.T) {
	c, _, _ := closedBare(t)
	for name, pkt := range map[string][]byte{
		"data":                  c.segment(packet.TCPAck|packet.TCPPsh, "late"),
		"an acknowledgment":     c.segment(packet.TCPAck, ""),
		"a reset":               c.segment(packet.TCPRst, ""),
		"a reset with ACK":      c.segment(packet.TCPRst|packet.TCPAck, ""),
		"another FIN":           c.segment(packet.TCPFin|packet.TCPAck, ""),
		"a FIN without ACK":     c.segment(packet.TCPFin, ""),
		"a SYN and ACK":         c.segment(packet.TCPSyn|packet.TCPAck, ""),
		"nothing in particular": c.segment(0, ""),
	} {
		if got := c.w.send(pkt); len(got) != 0 {
			t.Errorf("%s: answered by %d packets, flags %#x", name, len(got), one(t, got[:1]).TCPFlags)
		}
	}
	time.Sleep(20 * time.Millisecond) // gVisor answers on goroutines of its own
	if got := c.w.take(); len(got) != 0 {
		t.Errorf("answered by %d packets, flags %#x", len(got), one(t, got[:1]).TCPFlags)
	}
}

// Whoever has missed a reset learns of it.
func TestLateDataOfAResetConnectionIsReset(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	c := openBare(t, n, listen(t, hostAddr(t), func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
		c.Close()
	}))
	c.send(packet.TCPAck|packet.TCPPsh, "x")
	if p, _ := c.next(); p.TCPFlags&packet.TCPRst == 0 {
		t.Fatalf("flags %#x, want a reset", p.TCPFlags)
	}
	o := c.flow().Owner.(*tcpFlow)
	waitFor(t, "the end", func() bool { return tcpPhase(o.phase.Load()) == tcpEnded })
	c.send(packet.TCPAck|packet.TCPPsh, "late")
	if p, _ := c.next(); p.TCPFlags&packet.TCPRst == 0 {
		t.Errorf("flags %#x, want a reset", p.TCPFlags)
	}
}

// A reset behind a FIN ends the host's connection too, though it waits for an answer; the ports can be used at once.
func TestResetBehindFINReachesTheHost(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	silent := make(chan bool)
	t.Cleanup(func() { close(silent) })
	c := openBare(t, n, listen(t, hostAddr(t), func(c *net.TCPConn) {
		defer c.Close()
		<-silent
	}))
	o := c.flow().Owner.(*tcpFlow)
	c.send(packet.TCPFin|packet.TCPAck, "")
	c.acknowledged()
	c.send(packet.TCPRst, "")
	waitFor(t, "the end", func() bool { return tcpPhase(o.phase.Load()) == tcpEnded })
	c.got = nil
	c.seq += 5000
	c.open()
	if c.flow().Owner == any(o) {
		t.Error("the new connection is the old one's flow")
	}
}

// The table remembers a flow for long: thousands a second come to hundreds of thousands.
func TestRememberedFlowHoldsNoConnection(t *testing.T) {
	_, o, _ := closedBare(t)
	waitFor(t, "gVisor's endpoint to become garbage", func() bool {
		runtime.GC()
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.rest.Value() == nil && o.mesh == nil && o.host == nil
	})
	if k := o.replyTuple(); k.DstPort == o.flow.Key.SrcPort || k.DstPort == 0 {
		t.Errorf("answers to port %d, which is not the host's", k.DstPort)
	}
}

func TestRememberedFlowHoldsNoAcceptedConnection(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	w, k := func() (weak.Pointer[Conn], packet.Key) {
		near, err := p.near.DialTCP(t.Context(), ap(peerV4, servedPort))
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		near.Close() // before far: there is no TIME-WAIT at the far end
		io.Copy(io.Discard, far)
		far.Close()
		return weak.Make(far.(*Conn)), answerKey(packet.ProtoTCP, ap(peerV4, servedPort), near.local, 1)
	}()
	waitFor(t, "the connection to become garbage", func() bool { runtime.GC(); return w.Value() == nil })
	if f, _ := p.far.table.Lookup(&k); f == nil {
		t.Error("the flow is not remembered")
	} else {
		p.far.table.End(f, nat.Removed) // nothing is left to cut
	}
}

func TestPortsOfAnEndedConnectionCanBeUsedAgain(t *testing.T) {
	c, o, _ := closedBare(t)
	flow := c.flow()
	c.seq += 1000
	c.open()
	if now := c.flow(); now == flow || now.Owner == any(o) {
		t.Error("the new connection is the old one's flow")
	}
	if p, _ := c.next(); p.TCPFlags&packet.TCPFin == 0 {
		t.Errorf("flags %#x, want the server's FIN", p.TCPFlags)
	}
}
