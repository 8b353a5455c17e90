package relay

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// Transport is how frames travel.
type Transport uint8

// Transports of a connection.
const (
	TransportDERP      Transport = iota // after an upgrade that was waited for
	TransportFastStart                  // after one that was not
	TransportWebSocket
)

// String returns the word for status and logs.
func (t Transport) String() string {
	switch t {
	case TransportFastStart:
		return "fast-start"
	case TransportWebSocket:
		return "websocket"
	}
	return "derp"
}

// Info describes a connection.
type Info struct {
	URL       string
	Transport Transport
	TLS       string       // the version, "" without TLS
	Proxy     string       // scheme://host:port, "" without
	Key       wgkey.Public // the relay's
	Local     net.Addr
	Remote    net.Addr // the relay's address, or the proxy's
}

// Counters are what a connection has carried since it was opened.
type Counters struct {
	PacketsIn, PacketsOut uint64
	BytesIn, BytesOut     uint64 // of the packets themselves
	Dropped               uint64 // packets given to Send that were not sent: the queue was full
}

// Conn is one connection to a relay. Use Dialer.Dial. Somebody must call Recv all the time, since it also answers what the relay
// asks; all other methods may be called from several goroutines at once.
type Conn struct {
	info   Info
	key    wgkey.Private
	stream net.Conn
	bottom net.Conn
	end    func()
	in     *activity
	frames *derp.Reader
	out    outbox
	pings  pings

	packetsIn, bytesIn atomic.Uint64

	done    chan struct{} // closed when the connection is over
	written chan struct{} // closed when the writing goroutine has ended
	over    sync.Once
	err     error // why it is over; readable once done is closed
}

func newConn(s *session) *Conn {
	c := &Conn{
		info: s.info, key: s.dialer.Key, stream: s.stream, bottom: s.bottom, end: s.end,
		done: make(chan struct{}), written: make(chan struct{}),
	}
	c.info.Local, c.info.Remote = s.bottom.LocalAddr(), s.bottom.RemoteAddr()
	c.in = newActivity(s.stream)
	c.frames = derp.NewReader(c.in, derp.MaxServerFrame)
	c.out.init()
	return c
}

// start lets the connection live: Dial has succeeded.
func (c *Conn) start() {
	c.in.guard()
	go c.write()
}

// Info describes the connection.
func (c *Conn) Info() Info { return c.info }

// Counters returns what it has carried.
func (c *Conn) Counters() Counters {
	n := c.out.counters()
	n.PacketsIn, n.BytesIn = c.packetsIn.Load(), c.bytesIn.Load()
	return n
}

// Done is closed when the connection is over.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection at once; what waits to be sent is lost.
func (c *Conn) Close() error {
	c.fail(net.ErrClosed)
	<-c.written
	return nil
}

// fail ends the connection for a reason. Only the first counts.
func (c *Conn) fail(err error) {
	c.over.Do(func() {
		c.err = err
		close(c.done)
		c.out.close()
		c.bottom.Close()
		if c.end != nil {
			c.end()
		}
	})
}

// reason returns why the connection is over, given what an operation on it returned.
func (c *Conn) reason(err error) error {
	c.fail(err)
	if errors.Is(c.err, net.ErrClosed) {
		return net.ErrClosed
	}
	return fmt.Errorf("relay %s: %w", c.info.URL, c.err)
}

// Send queues packets for a peer: at most derp.MaxPacket bytes each, copied. Handshakes and disco overtake data. When the queue
// is full it waits up to 50 ms for room; then the oldest data is dropped, and counted. The error is net.ErrClosed if the connection
// is over, or one about a packet that is too long; the others are sent.
func (c *Conn) Send(to wgkey.Public, packets [][]byte) error { return c.send(to, packets, true) }

// SendNow is Send that does not wait: when the queue is full the oldest data is dropped at once.
func (c *Conn) SendNow(to wgkey.Public, packets [][]byte) error { return c.send(to, packets, false) }

func (c *Conn) send(to wgkey.Public, packets [][]byte, wait bool) error {
	var tooLong error
	deadline := time.Time{}
	for len(packets) > 0 {
		n, room, err := c.out.put(to, packets, !wait || !deadline.IsZero() && !time.Now().Before(deadline))
		packets = packets[n:]
		switch {
		case err == errTooLong:
			tooLong = fmt.Errorf("relay %s: packet of %d bytes for %s: longer than %d", c.info.URL, len(packets[0]), to.Short(), derp.MaxPacket)
			packets = packets[1:]
			continue
		case err != nil:
			return err
		case room == nil:
			continue
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(sendWait)
		}
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-room:
		case <-timer.C:
		case <-c.done:
		}
		timer.Stop()
	}
	if c.in.sent() {
		c.out.noteSilence()
	}
	return tooLong
}

// NotePreferred tells the relay whether it is this node's home.
func (c *Conn) NotePreferred(home bool) error {
	payload := []byte{0}
	if home {
		payload[0] = 1
	}
	return c.out.control(derp.FrameNotePreferred, payload)
}

// write is the goroutine that sends what is queued, as much as there is in each Write.
func (c *Conn) write() {
	defer close(c.written)
	var buf []byte
	for {
		var wait time.Duration
		buf, wait = c.out.take(buf[:0], time.Now())
		if len(buf) > 0 {
			if _, err := c.stream.Write(buf); err != nil {
				c.fail(fmt.Errorf("send: %w", err))
				return
			}
			continue
		}
		if !c.out.sleep(wait, c.done) {
			return
		}
	}
}
