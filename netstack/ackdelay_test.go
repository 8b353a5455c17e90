package netstack

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// bareTCP is a peer's connection through the exit, packet by packet.
type bareTCP struct {
	t        *testing.T
	w        *wire
	from, to netip.AddrPort
	seq, ack uint32 // the next to send, and the next expected
	got      [][]byte
}

// send makes a segment, and sends it.
func (c *bareTCP) send(flags uint8, data string) {
	c.got = append(c.got, c.w.send(c.segment(flags, data))...)
}

// segment is a packet of the connection, and moves seq on.
func (c *bareTCP) segment(flags uint8, data string) []byte {
	b := append(tcpPacket(c.from, c.to, flags, c.seq, c.ack), data...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:20], 0))
	binary.BigEndian.PutUint16(b[34:], 65535) // window
	finishTCP(b, 20)
	c.seq += uint32(len(data))
	if flags&(packet.TCPSyn|packet.TCPFin) != 0 {
		c.seq++
	}
	return b
}

// next returns the next packet, and notes how far it goes.
func (c *bareTCP) next() (p packet.Packet, data string) {
	c.t.Helper()
	waitFor(c.t, "a packet", func() bool { c.got = append(c.got, c.w.take()...); return len(c.got) > 0 })
	p = *one(c.t, c.got[:1])
	c.got = c.got[1:]
	data = string(p.Buf[p.Data:])
	c.ack = p.Seq + uint32(len(data))
	if p.TCPFlags&(packet.TCPSyn|packet.TCPFin) != 0 {
		c.ack++
	}
	return p, data
}

// openBare opens a connection.
func openBare(t *testing.T, n *Net, to netip.AddrPort) *bareTCP {
	t.Helper()
	c := &bareTCP{t: t, w: newWire(n), from: ap(peerV4, 5), to: to, seq: 100}
	c.open()
	return c
}

func (c *bareTCP) open() {
	c.t.Helper()
	c.ack = 0
	c.send(packet.TCPSyn, "")
	if p, _ := c.next(); p.TCPFlags != packet.TCPSyn|packet.TCPAck || p.Ack != c.seq {
		c.t.Fatalf("a SYN was answered by flags %#x, acknowledgment %d", p.TCPFlags, p.Ack)
	}
	c.send(packet.TCPAck, "")
}

// flow is the connection's in the table.
func (c *bareTCP) flow() *nat.Flow {
	p := tcpPacket(c.from, c.to, 0, 0, 0)
	var d packet.Packet
	packet.Decode(&d, p)
	d.Peer = c.w.n.policy.Load().PeerOf(c.from.Addr())
	f, _ := c.w.n.table.Lookup(&d.Key)
	return f
}

// sent waits until gVisor has sent its FIN.
func (c *bareTCP) sent() {
	c.t.Helper()
	waitFor(c.t, "the FIN", func() bool {
		o, ok := c.flow().Owner.(*tcpFlow)
		if !ok {
			return false
		}
		o.mu.Lock()
		mesh := o.mesh
		o.mu.Unlock()
		if mesh == nil {
			return false
		}
		e := mesh.ep.(*tcp.Endpoint)
		e.LockUser()
		defer e.UnlockUser()
		return e.EndpointState() == tcp.StateFinWait1
	})
}

func delayingNet(t *testing.T, wait time.Duration) *Net {
	n := newTestNet(t, testPolicy(t, nil))
	n.acks.wait = wait
	return n
}

func TestAnswerCarriesTheAcknowledgment(t *testing.T) {
	n := delayingNet(t, time.Hour)
	to := listen(t, hostAddr(t), func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(c, c)
	})
	c := openBare(t, n, to)
	for _, request := range []string{"a", "b", "and so on"} { // each acknowledges the answer before
		c.send(packet.TCPAck|packet.TCPPsh, request)
		if p, data := c.next(); data != request || p.Ack != c.seq {
			t.Errorf("%q was answered by %q, acknowledgment %d of %d", request, data, p.Ack, c.seq)
		}
	}
	packets, bytes := c.flow().Counters(nat.Reply)
	if packets != 4 { // with the SYN
		t.Errorf("%d packets, %d bytes are counted", packets, bytes)
	}
}

func TestAcknowledgmentWithoutAnAnswerIsNotLong(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	to := listen(t, hostAddr(t), func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(io.Discard, c)
	})
	c := openBare(t, n, to)
	for range 3 {
		c.send(packet.TCPAck|packet.TCPPsh, "x")
		if p, data := c.next(); data != "" || p.Ack != c.seq || p.TCPFlags != packet.TCPAck {
			t.Errorf("%q, flags %#x, acknowledgment %d of %d", data, p.TCPFlags, p.Ack, c.seq)
		}
	}
	if n.acks.queue != nil {
		t.Errorf("%d are still to be sent", len(n.acks.queue))
	}
}

func TestAcknowledgmentsThatDoNotWait(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	quiet := func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(io.Discard, c)
		<-done // its own FIN would carry the acknowledgment
	}
	full := make([]byte, 1380)
	for name, send := range map[string]func(c *bareTCP){
		"of a full segment": func(c *bareTCP) { c.send(packet.TCPAck, string(full)) },
		"of the second in a row": func(c *bareTCP) {
			c.send(packet.TCPAck|packet.TCPPsh, "x")
			waitFor(c.t, "the first to wait", func() bool { return c.flow().Owner.(*tcpFlow).ack.waits.Load() != nil })
			c.send(packet.TCPAck|packet.TCPPsh, "y")
		},
		"of two together": func(c *bareTCP) {
			c.got = append(c.got, c.w.send(c.segment(packet.TCPAck|packet.TCPPsh, "x"), c.segment(packet.TCPAck|packet.TCPPsh, "y"))...)
		},
		"of a FIN":           func(c *bareTCP) { c.send(packet.TCPAck|packet.TCPFin, "") },
		"of data with a FIN": func(c *bareTCP) { c.send(packet.TCPAck|packet.TCPFin, "x") },
		"of what came before": func(c *bareTCP) {
			c.send(packet.TCPAck|packet.TCPPsh, "x")
			waitFor(c.t, "the first to wait", func() bool { return c.flow().Owner.(*tcpFlow).ack.waits.Load() != nil })
			c.seq-- // the far end has not heard of it, and repeats it
			c.send(packet.TCPAck|packet.TCPPsh, "x")
		},
		"behind a gap": func(c *bareTCP) {
			c.seq += 3
			c.send(packet.TCPAck|packet.TCPPsh, "x")
			c.seq -= 4
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := openBare(t, delayingNet(t, time.Hour), listen(t, hostAddr(t), quiet))
			send(c)
			if p, data := c.next(); data != "" || p.Ack != c.seq || p.TCPFlags != packet.TCPAck {
				t.Errorf("%q, flags %#x, acknowledgment %d of %d", data, p.TCPFlags, p.Ack, c.seq)
			}
		})
	}
}

func TestCloseForgetsAcknowledgmentsThatWait(t *testing.T) {
	n := delayingNet(t, time.Hour)
	done := make(chan struct{})
	to := listen(t, hostAddr(t), func(c *net.TCPConn) {
		defer c.Close()
		<-done
	})
	defer close(done)
	c := openBare(t, n, to)
	c.send(packet.TCPAck|packet.TCPPsh, "x")
	o := c.flow().Owner.(*tcpFlow)
	waitFor(t, "the acknowledgment to wait", func() bool { return o.ack.waits.Load() != nil })
	n.Close()
	if o.ack.waits.Load() != nil || n.acks.queue != nil {
		t.Error("it waits still")
	}
}

func TestLastDataCarriesTheFIN(t *testing.T) {
	for _, answer := range []string{"y", string(make([]byte, 4000))} { // in one segment, and in several
		n := delayingNet(t, time.Hour)
		to := listen(t, hostAddr(t), func(c *net.TCPConn) {
			defer c.Close()
			c.Read(make([]byte, 1))
			io.WriteString(c, answer)
		})
		c := openBare(t, n, to)
		request := append(make([]byte, 16), c.segment(packet.TCPAck|packet.TCPPsh, "x")...)
		n.dev.Write([][]byte{request}, 16) // and nothing is read from the queue until all is in it
		c.sent()
		got, packets := 0, c.w.take()
		for i, b := range packets {
			p := one(t, [][]byte{b})
			last := i == len(packets)-1
			if fin := p.TCPFlags&packet.TCPFin != 0; fin != last || p.Ack != c.seq {
				t.Errorf("packet %d of %d: flags %#x, acknowledgment %d of %d", i+1, len(packets), p.TCPFlags, p.Ack, c.seq)
			}
			if last && len(p.Buf) == p.Data {
				t.Error("the FIN goes by itself")
			}
			got += len(p.Buf) - p.Data
			c.ack = p.Seq + uint32(len(p.Buf)-p.Data) + 1
		}
		if counted, _ := c.flow().Counters(nat.Reply); got != len(answer) || counted != uint64(1+len(packets)) {
			t.Errorf("%d bytes of %d, %d packets, and %d are counted", got, len(answer), len(packets), counted)
		}
		// gVisor believes it when the FIN is acknowledged.
		c.send(packet.TCPAck|packet.TCPFin, "")
		if p, data := c.next(); data != "" || p.TCPFlags != packet.TCPAck || p.Ack != c.seq {
			t.Errorf("the end: %q, flags %#x, acknowledgment %d of %d", data, p.TCPFlags, p.Ack, c.seq)
		}
	}
}

func TestSYNOnThePortsOfAnOldConnectionIsAnsweredByNoReset(t *testing.T) {
	n := delayingNet(t, time.Hour)
	to := listen(t, hostAddr(t), func(c *net.TCPConn) { c.Close() })
	c := openBare(t, n, to)
	for range 3 {
		if p, _ := c.next(); p.TCPFlags&packet.TCPFin == 0 {
			t.Fatalf("flags %#x, want a FIN", p.TCPFlags)
		}
		f := c.flow()
		c.send(packet.TCPAck|packet.TCPFin, "")
		c.next()
		waitFor(t, "the flow to end", func() bool { return f.TCP() == nat.TCPTimeWait })
		c.seq += 1 << 20
		c.open() // fails for any other answer
	}
}

func TestLateSYNOfAnOldConnectionIsForgotten(t *testing.T) {
	n := delayingNet(t, time.Hour)
	to := listen(t, hostAddr(t), func(c *net.TCPConn) { c.Close() })
	c := openBare(t, n, to)
	c.next()
	f := c.flow()
	c.send(packet.TCPAck|packet.TCPFin, "")
	c.next()
	waitFor(t, "the flow to end", func() bool { return f.TCP() == nat.TCPTimeWait })
	before := n.Drops()["no-flow"]
	c.seq = f.Owner.(*tcpFlow).isn
	c.ack = 0
	c.send(packet.TCPSyn, "")
	if f.Dead() || c.flow() != f || len(c.got) > 0 {
		t.Errorf("it ends the old connection, or begins one: %d packets", len(c.got))
	}
	if got := n.Drops()["no-flow"]; got != before+1 {
		t.Errorf("%d packets are counted as dropped, want one more than %d", got, before)
	}
}
