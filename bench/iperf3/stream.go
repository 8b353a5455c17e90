package iperf3

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// stream is one connection of a test, which carries data in one direction.
type stream struct {
	id     int
	sender bool
	conn   net.Conn                    // nil for the datagrams of a server, which share a socket
	send   func(b []byte) (int, error) // of a sender of datagrams
	ends   Connected

	mu  sync.Mutex // guards the following
	n   tally
	got reception // of a receiver of datagrams

	// The following belong to the goroutine that reports.
	base, last, final tally  // at the end of what is omitted, at the last report, and when the test ended
	tcp               tcpRun // of a sender of TCP
}

// tally is what a stream has counted since its start.
type tally struct {
	bytes   int64
	packets int64 // of datagrams: the number of the last one sent, or the highest one received

	lost, outOfOrder int64
	jitter           float64 // seconds
}

// streamID returns the number of the i-th stream of a test. There is no 2, which iperf3 keeps for its own past.
func streamID(i int) int {
	if i == 0 {
		return 1
	}
	return i + 2
}

// moved counts bytes, and one datagram with a number if it is not 0.
func (s *stream) moved(n int, number int64) {
	s.mu.Lock()
	s.n.bytes += int64(n)
	if number != 0 {
		s.n.packets = number
	}
	s.mu.Unlock()
}

// arrived counts a datagram.
func (s *stream) arrived(n int, h header, now time.Duration) {
	s.mu.Lock()
	s.n.bytes += int64(n)
	s.got.arrive(h, now)
	s.mu.Unlock()
}

// read returns what is counted so far.
func (s *stream) read() tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.got.any {
		s.n.packets, s.n.lost, s.n.outOfOrder, s.n.jitter = int64(s.got.highest), s.got.lost, s.got.outOfOrder, s.got.jitter
	}
	return s.n
}

// restart makes the jitter start anew, as the time that is omitted is over.
func (s *stream) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got.jitter = 0
}

// sendTCP writes blocks until the test stops, or has all it was to have.
func (t *test) sendTCP(s *stream) error {
	pace := newPacer(&t.Params, t.epoch)
	for t.claim() && pace.wait(t.stop) {
		n, err := s.conn.Write(t.payload)
		s.moved(n, 0)
		t.moved.Add(int64(n))
		if err != nil {
			return err
		}
	}
	return nil
}

// receiveTCP reads until the connection is closed, even after the end of the test: a far end that is blocked writing would not
// hear that the test is over. That a stream ends says nothing, as the control connection says why.
func (t *test) receiveTCP(s *stream) error {
	b := make([]byte, min(t.Length, defaultTCPLength))
	for {
		n, err := s.conn.Read(b)
		s.moved(n, 0)
		t.received(n)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// sendDatagrams sends until the test stops, or has all it was to have.
func (t *test) sendDatagrams(s *stream) error {
	b := append([]byte(nil), t.payload...)
	pace := newPacer(&t.Params, t.epoch)
	for number := int64(1); t.claim() && pace.wait(t.stop); number++ {
		header{sent: time.Since(t.epoch), number: uint64(number)}.append(b[:0], t.UDPCounters64)
		n, err := s.send(b)
		if err != nil && !isShortage(err) {
			return err
		}
		s.moved(n, number)
		t.moved.Add(int64(n))
	}
	return nil
}

// isShortage reports whether an error costs one datagram only, which counts as sent and lost.
func isShortage(err error) bool {
	return errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EAGAIN)
}

// receiveDatagrams reads from a connection of its own until it is closed.
func (t *test) receiveDatagrams(s *stream) error {
	b := make([]byte, maxDatagram)
	for {
		n, err := s.conn.Read(b)
		if err != nil {
			return err
		}
		t.datagram(s, b[:n])
	}
}

const maxDatagram = 64 << 10

// datagram counts one that came in for a stream. Those that open a stream are no data.
func (t *test) datagram(s *stream, b []byte) {
	h, ok := parseHeader(b, t.UDPCounters64)
	if !ok || h.number == 0 {
		return
	}
	s.arrived(len(b), h, time.Since(t.epoch))
	t.received(len(b))
}
