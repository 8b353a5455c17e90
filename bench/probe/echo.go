package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"
)

// The echo beside a server of ours is a UDP port that gives every request back. A datagram has 64 bytes in both directions:
//
//	 0  8  "culvert?" of a request, "culvert!" of its answer
//	 8  8  number, big endian; the asker's own
//	16 48  zero
//
// An answer is never answered, and is no longer than its request: there is no loop and nothing is amplified.
const (
	echoLen     = 64
	echoRequest = "culvert?"
	echoAnswer  = "culvert!"
	numberAt    = len(echoRequest)
	echoShift   = 20000
)

// passingErrors is how many errors in a row a socket may have: ICMP errors pass, others come without end.
const passingErrors = 1000

// EchoPort is where the server at a port has its echo: 20000 ports further up, or below where there is no such port. Servers of
// neighbouring ports do not meet there, as iperf3 has it that many run side by side.
func EchoPort(port uint16) uint16 {
	if int(port)+echoShift > 65535 {
		return port - echoShift
	}
	return port + echoShift
}

// answerEchoes serves until c is closed.
func answerEchoes(c net.PacketConn) error {
	b := make([]byte, echoLen+1)
	for failures := 0; ; {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // an ICMP error for an answer that nobody waits for
			if failures++; failures > passingErrors {
				return err
			}
			continue
		}
		failures = 0
		if n != echoLen || string(b[:numberAt]) != echoRequest {
			continue
		}
		copy(b, echoAnswer)
		c.WriteTo(b[:n], from) // lost like any other datagram
	}
}

// echoClient has one socket for all its requests.
type echoClient struct {
	conn net.Conn
	done chan struct{} // closed when read has ended

	mu      sync.Mutex // guards the following
	last    uint64
	waiting map[uint64]chan time.Time
	failed  error // set once nothing will be read any more
}

func newEchoClient(conn net.Conn) *echoClient {
	c := &echoClient{conn: conn, done: make(chan struct{}), waiting: make(map[uint64]chan time.Time)}
	go c.read()
	return c
}

// ask sends a request and waits for its answer.
func (c *echoClient) ask(ctx context.Context) (time.Duration, error) {
	answered := make(chan time.Time, 1)
	c.mu.Lock()
	if c.failed != nil {
		c.mu.Unlock()
		return 0, c.failed
	}
	c.last++
	number := c.last
	c.waiting[number] = answered
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, number)
		c.mu.Unlock()
	}()

	b := make([]byte, echoLen)
	copy(b, echoRequest)
	binary.BigEndian.PutUint64(b[numberAt:], number)
	began := time.Now()
	if _, err := c.conn.Write(b); err != nil {
		return 0, err
	}
	select {
	case at, ok := <-answered:
		if !ok {
			return 0, net.ErrClosed
		}
		return at.Sub(began), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// read hands out answers until the socket is closed. A port without a server is told by errors of the reads, which pass.
func (c *echoClient) read() {
	defer close(c.done)
	b := make([]byte, echoLen+1)
	for failures := 0; ; {
		n, err := c.conn.Read(b)
		if err != nil {
			if failures++; failures > passingErrors || errors.Is(err, net.ErrClosed) {
				c.end(err)
				return
			}
			continue
		}
		failures = 0
		if n != echoLen || string(b[:numberAt]) != echoAnswer {
			continue
		}
		at := time.Now()
		c.mu.Lock()
		answered := c.waiting[binary.BigEndian.Uint64(b[numberAt:])]
		c.mu.Unlock()
		if answered != nil {
			select {
			case answered <- at:
			default: // a duplicate
			}
		}
	}
}

func (c *echoClient) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = err
	for _, answered := range c.waiting {
		close(answered)
	}
	clear(c.waiting)
}

func (c *echoClient) close() {
	c.conn.Close()
	<-c.done
}
