package forward

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	maxBatch   = 16                       // datagrams of one system call, where the host has such calls
	maxPayload = 65535                    // more than any datagram of UDP has
	bufferLen  = proxyMaxLen + maxPayload // a header, a datagram
)

// datagram is one of a batch.
type datagram struct {
	room    []byte         // proxyMaxLen free bytes and the payload behind them
	out     []byte         // what is to be sent: the payload, perhaps with a header; a part of room
	from    netip.AddrPort // of a listener's: the client
	local   netip.Addr     // of a listener's: where the client sent it; the zero Addr if that is where the listener is bound
	addr    net.Addr       // of a listener that knows clients by it only
	session *session       // of a listener's: to whom it belongs, nil if it is refused
}

func (d *datagram) payload() []byte { return d.room[proxyMaxLen:] }

// batch is what a source read at once. It belongs to the reader until its next receive.
type batch struct {
	datagrams []datagram
	oversize  int    // more that were longer than a buffer and are not here
	outbox    outbox // of the sink that this batch is sent to
}

// pools have the buffers of an engine's sources, which hold some only while there is something to read.
type pools struct {
	raw   sync.Pool // of *packets
	plain sync.Pool // of *plainBuffer
}

// source reads the datagrams of one socket, for one goroutine.
type source interface {
	// receive waits for datagrams.
	receive() (*batch, error)
}

// sink sends datagrams to one destination, from one goroutine at a time.
type sink interface {
	// send sends the datagrams in order and returns how many it sent before err.
	send(datagrams []datagram, scratch *outbox) (n int, err error)
}

// listener is a socket that clients send to.
type listener struct {
	source
	pc    net.PacketConn
	local netip.AddrPort         // what it is bound to, perhaps the wildcard
	reply func(d *datagram) sink // to the client of d
}

// origin returns where d came from and to.
func (l *listener) origin(d *datagram) Origin {
	o := Origin{Client: d.from, Local: l.local}
	if d.local.IsValid() {
		o.Local = netip.AddrPortFrom(d.local, l.local.Port())
	}
	return o
}

// newListener chooses the fastest way that pc permits.
func newListener(pc net.PacketConn, pool *pools) (*listener, error) {
	l := &listener{pc: pc, local: addrPort(pc.LocalAddr())}
	fast, err := l.useRaw(&pool.raw)
	if fast || err != nil {
		return l, err
	}
	if udp, ok := pc.(*net.UDPConn); ok {
		pc = udpConn{udp}
	}
	if ap, ok := pc.(addrPortConn); ok {
		l.source = newPlainSource(pc, &pool.plain, func(b []byte, d *datagram) (n int, err error) {
			n, d.from, err = ap.ReadFromAddrPort(b)
			d.from = unmap(d.from)
			return n, err
		})
		l.reply = func(d *datagram) sink {
			to := d.from
			return plainSink(func(b []byte) (int, error) { return ap.WriteToAddrPort(b, to) })
		}
		return l, nil
	}
	l.source = newPlainSource(pc, &pool.plain, func(b []byte, d *datagram) (n int, err error) {
		if n, d.addr, err = pc.ReadFrom(b); err == nil {
			d.from = addrPort(d.addr)
		}
		return n, err
	})
	l.reply = func(d *datagram) sink {
		to := d.addr
		return plainSink(func(b []byte) (int, error) { return pc.WriteTo(b, to) })
	}
	return l, nil
}

// newTarget does the same for the socket of a session.
func newTarget(c net.Conn, pool *pools) (source, sink) {
	if src, dst, ok := rawTarget(c, &pool.raw); ok {
		return src, dst
	}
	return newPlainSource(c, &pool.plain, func(b []byte, _ *datagram) (int, error) { return c.Read(b) }), plainSink(c.Write)
}

// addrPortConn is a net.PacketConn without the allocations.
type addrPortConn interface {
	net.PacketConn
	ReadFromAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToAddrPort(b []byte, to netip.AddrPort) (int, error)
}

type udpConn struct{ *net.UDPConn }

func (c udpConn) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	return c.ReadFromUDPAddrPort(b)
}

func (c udpConn) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return c.WriteToUDPAddrPort(b, to)
}

// readWaiter is a socket that can say that there is something to read, so that an idle one needs no buffer.
type readWaiter interface {
	// WaitRead returns nil when a read would not wait, or what a read would fail with.
	WaitRead() error
}

// plainSource reads one datagram at a time.
type plainSource struct {
	read  func(b []byte, d *datagram) (int, error)
	wait  func() error // nil: the socket is no readWaiter, and the source keeps its buffer
	pool  *sync.Pool   // of *plainBuffer
	buf   *plainBuffer
	batch batch
	one   [1]datagram
}

type plainBuffer [bufferLen + 1]byte // one more, to tell what is too long

func newPlainSource(socket any, pool *sync.Pool, read func(b []byte, d *datagram) (int, error)) *plainSource {
	s := &plainSource{read: read, pool: pool}
	if w, ok := socket.(readWaiter); ok {
		s.wait = w.WaitRead
	}
	return s
}

func (s *plainSource) receive() (*batch, error) {
	if s.wait != nil {
		s.release()
		if err := s.wait(); err != nil {
			return nil, err
		}
	}
	if s.buf == nil {
		if s.buf, _ = s.pool.Get().(*plainBuffer); s.buf == nil {
			s.buf = new(plainBuffer)
		}
	}
	d := &s.one[0]
	*d = datagram{}
	n, err := s.read(s.buf[proxyMaxLen:], d)
	if err != nil {
		s.release()
		return nil, err
	}
	if n > maxPayload {
		s.batch.datagrams, s.batch.oversize = nil, 1
		return &s.batch, nil
	}
	d.room = s.buf[:proxyMaxLen+n]
	d.out = d.payload()
	s.batch.datagrams, s.batch.oversize = s.one[:], 0
	return &s.batch, nil
}

func (s *plainSource) release() {
	if s.buf != nil {
		s.pool.Put(s.buf)
		s.buf = nil
	}
}

// plainSink sends by a function that writes one datagram.
type plainSink func(b []byte) (int, error)

func (f plainSink) send(datagrams []datagram, _ *outbox) (int, error) {
	for i := range datagrams {
		if _, err := f(datagrams[i].out); err != nil {
			return i, err
		}
	}
	return len(datagrams), nil
}

// backoff paces a loop whose socket reports errors that pass.
type backoff struct{ failures int }

func (b *backoff) reset() { b.failures = 0 }

// wait pauses for 2 ms to 1 s, or until done is closed.
func (b *backoff) wait(done <-chan struct{}) {
	b.failures = min(b.failures+1, 10)
	t := time.NewTimer(min(time.Millisecond<<b.failures, time.Second))
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}
