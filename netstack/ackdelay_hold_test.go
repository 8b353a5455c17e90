package netstack

import (
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

var (
	sackOption = []byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	timeOption = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
)

// madeTCP is a connection of a peer's in the table, of which gVisor knows nothing.
func madeTCP(t *testing.T, n *Net) *tcpFlow {
	t.Helper()
	f := &nat.Flow{Key: packet.Key{
		Src: peerV4.As16(), Dst: netip.MustParseAddr("203.0.113.9").As16(), SrcPort: 1000, DstPort: 443, Peer: 1, Proto: packet.ProtoTCP, V: 4,
	}}
	c := &tcpFlow{n: n, flow: f}
	f.Owner = c
	if !n.table.Insert(f, n.table.Now()) {
		t.Fatal("no room")
	}
	return c
}

// made is a packet of c's from gVisor.
func (c *tcpFlow) made(f header.TCPFields, options []byte, data int) *stack.PacketBuffer {
	hlen := header.TCPMinimumSize + len(options)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: hlen, Payload: buffer.MakeWithData(make([]byte, data))})
	h := header.TCP(pkt.TransportHeader().Push(hlen))
	f.SrcPort, f.DstPort, f.DataOffset = c.flow.Key.DstPort, c.flow.Key.SrcPort, uint8(hlen)
	h.Encode(&f)
	copy(h[header.TCPMinimumSize:], options)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.GSOOptions.NeedsCsum = true
	pkt.Owner = c
	return pkt
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

func TestWhichAcknowledgmentsWait(t *testing.T) {
	type step struct {
		ack     uint32
		shut    bool // the window
		options []byte
		data    int // that it carries
		came    []int
		waits   bool
	}
	for name, steps := range map[string][]step{
		"few bytes":         {{ack: 100, came: []int{100}, waits: true}},
		"with timestamps":   {{ack: 100, options: timeOption, came: []int{100}, waits: true}},
		"two segments":      {{ack: 100, came: []int{50, 50}}, {ack: 150, came: []int{50}, waits: true}},
		"no data among two": {{ack: 100, came: []int{100, 0}, waits: true}},
		"counted while other data leaves": {
			{ack: 100, data: 1, came: []int{100}}, {ack: 100, data: 1, came: []int{50, 50}}, {ack: 200},
		},
		"a shut window": {{ack: 100, shut: true, came: []int{100}}},
		"a gap filled": {
			{ack: 100, data: 1}, {ack: 100, came: []int{50}}, {ack: 200, came: []int{50}}, {ack: 250, came: []int{50}, waits: true},
		},
		"a gap filled after data":    {{ack: 100, data: 1}, {ack: 100}, {ack: 100, data: 1}, {ack: 200}},
		"a gap filled after SACK":    {{ack: 100, options: sackOption}, {ack: 200}, {ack: 250, waits: true}},
		"a gap filled step by step":  {{ack: 100, options: sackOption}, {ack: 150, options: sackOption}, {ack: 200}},
		"data with the same, no gap": {{ack: 100, data: 1}, {ack: 100, data: 1}, {ack: 200, waits: true}},
	} {
		t.Run(name, func(t *testing.T) {
			n := delayingNet(t, time.Hour)
			c := madeTCP(t, n)
			for i, s := range steps {
				for _, size := range s.came {
					c.ack.came(&packet.Packet{Buf: make([]byte, 40+size), Data: 40})
				}
				f := header.TCPFields{AckNum: s.ack, Flags: header.TCPFlagAck, WindowSize: 1}
				if s.shut {
					f.WindowSize = 0
				}
				pkt := c.made(f, s.options, s.data)
				if waits := n.acks.delay(c, pkt, 1); waits != s.waits {
					t.Errorf("packet %d, acknowledgment %d: waits %v, want %v", i+1, s.ack, waits, s.waits)
				}
				pkt.DecRef()
			}
		})
	}
}

// What waited before and was released may be the same packet again when another waits.
func TestReleasedAcknowledgmentDoesNotSendALaterOne(t *testing.T) {
	n := delayingNet(t, time.Hour)
	c := madeTCP(t, n)
	a := &n.acks
	hold := func(pkt *stack.PacketBuffer, ack uint32) {
		header.TCP(pkt.TransportHeader().Slice()).SetAckNumber(ack)
		if !a.delay(c, pkt, 1) {
			t.Fatalf("acknowledgment %d does not wait", ack)
		}
	}
	pkt := c.made(header.TCPFields{Flags: header.TCPFlagAck, WindowSize: 1}, nil, 0)
	defer pkt.DecRef()
	answer := c.made(header.TCPFields{AckNum: 100, Flags: header.TCPFlagAck, WindowSize: 1}, nil, 1)
	defer answer.DecRef()
	hold(pkt, 100)
	a.mu.Lock()
	a.queue[0].due = 0
	a.mu.Unlock()
	a.delay(c, answer, 1)
	hold(pkt, 200)
	a.expire()
	if got := n.out.len(); got != 0 || c.ack.waits.Load() != pkt {
		t.Errorf("%d packets are sent before their time", got)
	}
	due(a, c)
	a.expire()
	if got := n.out.len(); got != 1 || c.ack.waits.Load() != nil {
		t.Errorf("%d packets are sent in time, want 1", got)
	}
}

// due makes it time for all that wait, of which the latest is c's.
func due(a *ackDelays, c *tcpFlow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.queue {
		a.queue[i].due = 0
	}
	c.ack.due.Store(0)
}

func TestNoAcknowledgmentAfterAReset(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	to := listen(t, hostAddr(t), func(c *net.TCPConn) {
		defer c.Close()
		<-done
	})
	n := delayingNet(t, time.Hour)
	c := openBare(t, n, to)
	f := c.flow()
	o := f.Owner.(*tcpFlow)
	c.send(packet.TCPAck|packet.TCPPsh, "x")
	waitFor(t, "the acknowledgment to wait", func() bool { return o.ack.waits.Load() != nil })
	c.send(packet.TCPRst|packet.TCPAck, "")
	waitFor(t, "the flow to end", func() bool { return f.State() == nat.StateClosing })
	due(&n.acks, o)
	n.acks.expire()
	if got := c.w.take(); len(got) > 0 || o.ack.waits.Load() != nil {
		t.Errorf("%d packets are sent", len(got))
	}
}

func TestAcknowledgmentsOfWhatIsOverAreNotSent(t *testing.T) {
	for name, end := range map[string]func(c *tcpFlow){
		"not over":               func(*tcpFlow) {},
		"begun anew by the peer": func(c *tcpFlow) { c.silent.Store(true) },
		"aborted":                func(c *tcpFlow) { c.abort() },
		"ended":                  func(c *tcpFlow) { c.n.enterTCP(c.flow, nat.TCPClose) },
		"no longer in the table": func(c *tcpFlow) { c.n.table.Remove(c.flow) },
	} {
		t.Run(name, func(t *testing.T) {
			n := delayingNet(t, time.Hour)
			c := madeTCP(t, n)
			pkt := c.made(header.TCPFields{AckNum: 100, Flags: header.TCPFlagAck, WindowSize: 1}, nil, 0)
			defer pkt.DecRef()
			if !n.acks.delay(c, pkt, 1) {
				t.Fatal("it does not wait")
			}
			end(c)
			due(&n.acks, c)
			n.acks.expire()
			want := 0
			if name == "not over" {
				want = 1
			}
			counted, _ := c.flow.Counters(nat.Reply)
			if got := n.out.len(); got != want || counted != uint64(want) || c.ack.waits.Load() != nil {
				t.Errorf("%d are sent, %d counted, want %d", got, counted, want)
			}
		})
	}
}

// Acknowledgments that are due one right after the other do not wake the timer one by one.
func TestTimerOfAcknowledgmentsIsNotHurried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Net{table: nat.New(nat.Config{})}
		d := &n.acks
		d.init(n)
		defer d.close()
		c := &tcpFlow{n: n, flow: new(nat.Flow)}
		pkt := c.made(header.TCPFields{Flags: header.TCPFlagAck}, nil, 0)
		defer pkt.DecRef()
		const count, apart = 50, 10 * time.Microsecond
		for range count {
			if !d.hold(waitingAck{c: c, pkt: pkt, due: n.table.Now() + int64(ackDelay)}) {
				t.Fatal("it does not wait")
			}
			if c.ack.waits.CompareAndSwap(pkt, nil) {
				pkt.DecRef()
			}
			time.Sleep(apart)
		}
		left := func() int {
			synctest.Wait()
			d.mu.Lock()
			defer d.mu.Unlock()
			return len(d.queue)
		}
		time.Sleep(ackDelay) // now all are due, and the timer has run for the first
		if got := left(); got != count-1 {
			t.Errorf("%d are left before the timer may run again, want %d", got, count-1)
		}
		time.Sleep(leastWait)
		if got := left(); got != 0 {
			t.Errorf("%d are left", got)
		}
	})
}
