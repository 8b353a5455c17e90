package dns

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS over TCP, RFC 7766: messages with two bytes of length in front, several of them on a connection, answered in the
// order in which answers become known.
const (
	idleTime        = 10 * time.Second // between queries, for one query to arrive and for one answer to leave
	maxConns        = 256
	maxConnsPerPeer = 32
	maxPipelined    = 32 // queries in flight on one connection; more wait in the connection
)

// ServeTCP answers queries on connections that l accepts until Close, which makes it return nil, or until l fails. It owns
// l, and may be called for several listeners.
func (s *Server) ServeTCP(l net.Listener) error {
	if !s.track(l) {
		return nil
	}
	defer s.untrack(l)
	var backoff backoff
	for {
		c, err := l.Accept()
		if err != nil {
			if s.isClosed() {
				return nil
			}
			if !backoff.wait(s.ctx, err) {
				return err
			}
			continue
		}
		backoff.reset()
		client := addrOf(c.RemoteAddr())
		if !s.conns.acquire(client) {
			s.counters.dropped.Add(1)
			c.Close()
			continue
		}
		if !s.track(c) {
			s.conns.release(client)
			return nil
		}
		go func() {
			defer s.untrack(c)
			defer s.conns.release(client)
			s.serveConn(c, client)
		}()
	}
}

// serveConn returns when the client has closed or idled and its last query is answered.
func (s *Server) serveConn(c net.Conn, client netip.Addr) {
	w := &connWriter{c: c}
	r := bufio.NewReaderSize(c, 1024)
	slots := make(chan struct{}, maxPipelined)
	var pending sync.WaitGroup
	defer pending.Wait()
	for {
		c.SetReadDeadline(time.Now().Add(idleTime))
		query, err := readMessage(r, maxQueryLen)
		if err != nil {
			return
		}
		s.counters.queries.Add(1)
		slots <- struct{}{}
		if !s.queries.acquire(client) {
			<-slots
			s.counters.dropped.Add(1)
			if m, ok := parse(query); !ok || m.has(flagQR) || !w.write(reply(&m, dnsmessage.RCodeServerFailure)) {
				return
			}
			continue
		}
		pending.Add(1)
		go func() {
			defer pending.Done()
			defer func() { <-slots }()
			defer s.queries.release(client)
			answer := s.answer(client, query, true)
			if answer == nil || !w.write(answer) {
				s.counters.dropped.Add(1)
				c.Close()
			}
		}()
	}
}

// connWriter writes whole messages of concurrent queries.
type connWriter struct {
	mu sync.Mutex // held for one message
	c  net.Conn
}

func (w *connWriter) write(b []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.c.SetWriteDeadline(time.Now().Add(idleTime))
	return writeMessage(w.c, b) == nil
}

var errMessageSize = errors.New("dns message size")

// readMessage reads one message of at most limit bytes.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n < headerLen || n > limit {
		return nil, errMessageSize
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// writeMessage writes the length and the message at once, so that they share a segment.
func writeMessage(w io.Writer, b []byte) error {
	if len(b) > 0xffff {
		return errMessageSize
	}
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b)))
	_, err := w.Write(append(framed, b...))
	return err
}
