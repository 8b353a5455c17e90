package netstack

import (
	"errors"
	"io"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// meshEnd is the mesh's side of a TCP connection that is spliced: what gVisor has received leaves for a socket without being copied.
//
// Meanwhile that memory is lent. gVisor would give it to the next packet, of whomever, as soon as the connection is closed or
// aborted; hence both wait here until the loan is over.
type meshEnd struct {
	ep tcpip.Endpoint

	mu     sync.Mutex // guards the following
	lent   bool
	ending ending // what has been asked for
}

type ending uint8

const (
	endNot ending = iota
	endClose
	endAbort
)

// vectorWriter is a stream socket.
type vectorWriter interface {
	Writev(iov [][]byte) (int, error)
}

var (
	errWait   = errors.New("nothing to read yet")
	errEnough = errors.New("enough for one write")
)

// end closes the connection in order, or resets it; while its memory is lent, that is done as the loan ends.
func (m *meshEnd) end(how ending) {
	m.mu.Lock()
	m.ending = max(m.ending, how)
	lent := m.lent
	m.mu.Unlock()
	if !lent {
		m.endNow(how)
	}
}

// orphanTimeout is how long a closed connection tries to get rid of what was written before. A far end that keeps its window shut, and
// says so whenever it is asked, would hold it for ever.
const orphanTimeout = tcpip.TCPUserTimeoutOption(2 * time.Minute)

func (m *meshEnd) endNow(how ending) {
	switch how {
	case endClose:
		m.ep.SetSockOpt(new(orphanTimeout))
		m.ep.Close()
	case endAbort:
		m.ep.Abort()
	}
}

// lend begins a loan, unless the end has begun.
func (m *meshEnd) lend() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lent = m.ending == endNot
	return m.lent
}

func (m *meshEnd) giveBack() {
	m.mu.Lock()
	m.lent = false
	how := m.ending
	m.mu.Unlock()
	m.endNow(how)
}

// writeTo writes what has been received to w, straight from gVisor's buffers, about most bytes at once. It returns how much w took. An error
// that is not w's is errWait, io.EOF at the peer's FIN, or errBroken with gVisor's reason. Only one goroutine may read from the
// connection.
func (m *meshEnd) writeTo(w vectorWriter, most int) (n int, terr tcpip.Error, err error) {
	if !m.lend() {
		return 0, nil, errBroken
	}
	defer m.giveBack()
	c := segmentsPool.Get().(*segments)
	c.most = most
	defer c.release()
	_, terr = m.ep.Read(c, tcpip.ReadOptions{Peek: true})
	if c.total == 0 {
		return 0, terr, readEnd(m.ep, terr)
	}
	n, err = w.Writev(c.b)
	if n == 0 {
		return 0, nil, err
	}
	c.discard.n = n
	if res, terr := m.ep.Read(&c.discard, tcpip.ReadOptions{}); terr != nil || res.Count != n {
		return n, terr, errBroken
	}
	m.ep.ModerateRecvBuf(n)
	return n, nil, err
}

var errBroken = errors.New("the connection is broken")

// readEnd tells what it means that nothing could be read: errWait, io.EOF, or errBroken. An endpoint names the reason of its end
// once, to whoever asks first; from then on its end looks like a FIN, but for its state.
func readEnd(ep tcpip.Endpoint, terr tcpip.Error) error {
	switch terr.(type) {
	case nil, *tcpip.ErrWouldBlock:
		return errWait
	case *tcpip.ErrClosedForReceive:
		if tcp.EndpointState(ep.State()) != tcp.StateError {
			return io.EOF
		}
	}
	return errBroken
}

// segments collects the received segments without copying them; gVisor keeps them until they are read for real, with discard.
type segments struct {
	b       [][]byte
	total   int
	most    int
	discard discard
}

const maxSlices = 256

var segmentsPool = sync.Pool{New: func() any { return &segments{b: make([][]byte, 0, maxSlices)} }}

func (c *segments) Write(p []byte) (int, error) {
	if len(c.b) == maxSlices || c.total >= c.most {
		return 0, errEnough
	}
	if len(p) > 0 {
		c.b = append(c.b, p)
		c.total += len(p)
	}
	return len(p), nil
}

func (c *segments) release() {
	clear(c.b)
	c.b, c.total = c.b[:0], 0
	segmentsPool.Put(c)
}

// discard reads n bytes away.
type discard struct{ n int }

func (d *discard) Write(p []byte) (int, error) {
	if len(p) <= d.n {
		d.n -= len(p)
		return len(p), nil
	}
	n := d.n
	d.n = 0
	return n, errEnough
}

// payload is a tcpip.Payloader over a slice.
type payload struct{ b []byte }

func (p *payload) Len() int { return len(p.b) }

func (p *payload) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b)
	p.b = p.b[n:]
	return n, nil
}
