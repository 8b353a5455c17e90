package netstack

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// If this fails a new gVisor counts elsewhere what an endpoint holds; see receiveMemoryAt.
func TestWhatIsHeldIsFound(t *testing.T) {
	if receiveMemoryAt < 0 || sendMemoryAt < 0 {
		t.Fatalf("at %d and %d of tcp.Endpoint", receiveMemoryAt, sendMemoryAt)
	}
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	go far.Write(make([]byte, 8<<20)) // until the test ends
	waitFor(t, "what is received", func() bool { return receiveMemory(near.ep.(*tcp.Endpoint)) > 32<<10 })
	waitFor(t, "what is to be sent", func() bool { return sendMemory(far.ep.(*tcp.Endpoint)) > 512<<10 })
	if n := sendMemory(near.ep.(*tcp.Endpoint)); n != 0 {
		t.Errorf("%d bytes to be sent of a connection that has sent nothing", n)
	}
}

// lookNow does what the goroutine does once it has a processor, of which these tests leave it little.
func lookNow(n *Net) {
	n.held.lookReceived(n)
	n.held.lookSent(n)
}

// uploads is what peers send to a node, by connections that nobody has read yet.
func uploads(t *testing.T, p *pair, conns int, data []byte) []*Conn {
	l := p.listen(t, ap(peerV4, servedPort))
	nears := make([]*Conn, conns)
	for i := range nears {
		near, far := p.connect(t, l)
		near.SetDeadline(time.Time{})
		far.SetDeadline(time.Time{})
		go func() {
			far.Write(data)
			far.CloseWrite()
		}()
		nears[i] = near
		waitFor(t, "data", func() bool { return receiveMemory(near.ep.(*tcp.Endpoint)) > 0 })
		lookNow(p.near)
	}
	return nears
}

// readAll reads connections at once, and finds data on each.
func readAll(t *testing.T, conns []*Conn, data []byte) {
	t.Helper()
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
				t.Errorf("connection %d: %d of %d bytes, %v", i, len(got), len(data), err)
			}
		})
	}
	wg.Wait()
}

// Peers send all they can to connections that nobody reads: the memory is bounded however many there are, one that is read goes on beside
// them, and when all are read nothing is missing.
func TestUnreadIsBounded(t *testing.T) {
	p := newLossyPair(t, Limits{Held: 2 << 20}, nil)
	data := randomBytes(128 << 10)
	nears := uploads(t, p, 200, data)
	readAll(t, nears[:1], data)
	var peak int64
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var sum int64
		for _, c := range nears {
			sum += receiveMemory(c.ep.(*tcp.Endpoint))
		}
		peak = max(peak, sum)
	}
	t.Logf("%d KiB are held, %d at most", peak>>10, p.near.held.recv.most>>10)
	if most := 3 * p.near.held.recv.most; peak > most {
		t.Errorf("%d KiB are held, want at most %d", peak>>10, most>>10)
	}
	if peak < p.near.held.recv.most/4 {
		t.Errorf("only %d KiB are held: nothing was tested", peak>>10)
	}
	readAll(t, nears[1:], data)
	waitFor(t, "buffers to be what they were", func() bool {
		p.near.held.mu.Lock()
		defer p.near.held.mu.Unlock()
		return len(p.near.held.limits) == 0
	})
	for i, c := range nears {
		if size := c.ep.SocketOptions().GetReceiveBufferSize(); size < tcpReceiveBuffer {
			t.Errorf("connection %d has %d bytes left of its buffer", i, size)
		}
	}
}

// A segment is lost at the worst moment: what came behind it fills the buffer, which must not keep it out when it is repeated.
func TestAGapIsFilledThoughMuchIsHeld(t *testing.T) {
	var mu sync.Mutex
	first := make(map[string]time.Time) // by the connection's ports
	p := newLossyPair(t, Limits{Held: 256 << 10}, func(pkt []byte) bool {
		if len(pkt) < 1000 || pkt[9] != 6 {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		ports, seq := string(pkt[20:24]), string(pkt[24:28])
		if _, ok := first[ports]; !ok {
			first[ports] = time.Time{}
			first[ports+seq] = time.Now().Add(400 * time.Millisecond)
		}
		return time.Now().Before(first[ports+seq])
	})
	data := randomBytes(96 << 10)
	readAll(t, uploads(t, p, 40, data), data)
}

// A peer begins many downloads and takes nothing: what the node holds for it is bounded, and what is read after all is whole.
func TestUnsentIsBounded(t *testing.T) {
	for _, c := range []struct {
		name        string
		conns, each int
	}{{"more than fits", 40, 3 << 20}, {"little each", 150, 200 << 10}} {
		t.Run(c.name, func(t *testing.T) {
			host := hostAddr(t)
			n, err := New(Config{MTU: 1420, Policy: testPolicy(t, nil), Limits: Limits{Held: 2 << 20}})
			if err != nil {
				t.Fatal(err)
			}
			p := newTestPeer(t, n)
			if err := tcpOption(p.stack, "small windows", &tcpip.TCPReceiveBufferSizeRangeOption{Min: 1, Default: 16 << 10, Max: 16 << 10}); err != nil {
				t.Fatal(err)
			}
			data := randomBytes(c.each)
			to := listen(t, host, func(c *net.TCPConn) {
				c.Write(data)
				c.Close()
			})
			mine, first := make([]*gonet.TCPConn, c.conns), make([]byte, c.conns)
			for i := range mine {
				c, err := p.dial(t, to)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				mine[i] = c
				c.SetReadDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.ReadFull(c, first[i:i+1]); err != nil {
					t.Fatal(err)
				}
				lookNow(n)
			}
			var sum, last int64
			same := 0
			waitFor(t, "nothing to move any more", func() bool {
				sum = 0
				for _, e := range n.stack.RegisteredEndpoints() {
					if ep, ok := e.(*tcp.Endpoint); ok {
						sum += sendMemory(ep)
					}
				}
				if same++; sum != last {
					last, same = sum, 0
				}
				return same > 50
			})
			t.Logf("%d KiB are held, of %d", sum>>10, c.conns*c.each>>10)
			// At least 16 KiB each, twice: gVisor takes what it has begun to take.
			if most := 2*n.held.sent.most + int64(c.conns*heldLeastSent*2); sum > most {
				t.Errorf("%d KiB are held for %d downloads, want at most %d", sum>>10, c.conns, most>>10)
			}
			if sum < n.held.sent.most/2 {
				t.Errorf("only %d KiB are held: nothing was tested", sum>>10)
			}
			for i, c := range mine[:4] {
				c.SetReadDeadline(time.Now().Add(20 * time.Second))
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(append(first[i:i+1:i+1], got...), data) {
					t.Errorf("download %d: %d bytes, %v", i, len(got), err)
				}
			}
		})
	}
}

func TestSharesOfWhatIsHeld(t *testing.T) {
	const most = 1000
	var all []holding
	for range 100 {
		all = append(all, holding{peer: 1, bytes: 50}) // 5,000
	}
	all = append(all, holding{peer: 1, bytes: 2}, holding{peer: 2, bytes: 100}, holding{peer: 2, bytes: 150}, holding{peer: 3})
	got, total := shares(all, most, 1)
	if total != 5252 || len(got) != 1 || got[1] != 4 { // 500 of the 750 are left for peer 1, and 498 of them for the large ones
		t.Errorf("shares %v of %d", got, total)
	}
	if got, _ := shares(all[100:], most, 1); got != nil {
		t.Errorf("shares %v where there is room", got)
	}
	if got, _ := shares(all, most, 20); got[1] != 20 {
		t.Errorf("shares %v, want at least 20", got)
	}
}

func TestLevel(t *testing.T) {
	for _, c := range []struct {
		have      []int64
		sum, want int64
	}{
		{[]int64{100, 100, 100, 100}, 200, 50},
		{[]int64{1000, 10, 20}, 130, 100},
		{[]int64{0, 0, 90, 90, 90}, 90, 30},
		{[]int64{500}, 300, 300},
		{[]int64{1, 2, 3}, 100, tcpMaxBuffer}, // all fits
	} {
		if got := level(c.have, c.sum); got != c.want {
			t.Errorf("level(%v, %d) = %d, want %d", c.have, c.sum, got, c.want)
		}
	}
}
