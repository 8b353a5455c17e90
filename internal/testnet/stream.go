package testnet

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// Stream is a reliable connection between two hosts: a net.Conn, with CloseWrite. It is a small TCP (RFC 9293) with
// retransmission and slow start, whose segments travel the network as any packets do: NATs translate
// them, lossy links slow them down. When nothing is acknowledged for Config.StreamTimeout, or an idle connection does not
// answer keep-alives, the stream breaks with ETIMEDOUT.
type Stream struct {
	h             *Host
	key           streamKey
	rd, wr        signal
	readD, writeD deadline
	opened        chan struct{} // closed when the handshake is done or has failed
	done          chan struct{} // closed when the stream has failed or was closed here

	// The following is guarded by the network's lock.
	listener *Listener // that it will be handed out by; nil if it was dialled
	state    streamState
	err      error // why it failed
	closed   bool  // by Close
	sender
	receiver

	heard   int64 // when the last segment came
	waiting int64 // since when nothing has been acknowledged, while something should be
	rto     time.Duration
	srtt    time.Duration
	due     int64 // when the timer should fire
	timer   int64 // when it will, at the latest; 0: never
}

type streamKey struct{ local, remote netip.AddrPort }

type streamState uint8

const (
	opening   streamState = iota // SYN sent
	answering                    // SYN received, SYN and ACK sent
	open                         // until both FINs are acknowledged
	over                         // no longer known to the host
)

// streamBuffer is how much may wait in either direction at either end.
const streamBuffer = 512 << 10

func (h *Host) newStream(k streamKey, st streamState) *Stream {
	s := &Stream{
		h: h, key: k, state: st, rd: newSignal(), wr: newSignal(), opened: make(chan struct{}), done: make(chan struct{}),
		heard: h.net.now(), waiting: h.net.now(), rto: time.Second,
	}
	iss := h.rng.Uint32()
	s.una, s.nxt, s.top, s.recover = iss, iss+1, iss+1, iss
	s.early = map[uint32][]byte{}
	s.mss = h.mtuTo(k.local.Addr(), k.remote.Addr()) - s.overhead()
	s.mss = min(s.mss, 65535)
	s.cwnd, s.threshold = 10*s.mss, streamBuffer
	s.peerWindow = s.mss
	h.streams[k] = s
	return s
}

// overhead is what the headers of a segment take.
func (s *Stream) overhead() int {
	if s.key.local.Addr().Is4() {
		return 20 + headerTCPLen
	}
	return 40 + headerTCPLen
}

// emit sends one segment, in the name of the stream.
func (s *Stream) emit(flags uint8, seq uint32, payload []byte) {
	k := packet.Key{
		Src: s.key.local.Addr().As16(), Dst: s.key.remote.Addr().As16(),
		SrcPort: s.key.local.Port(), DstPort: s.key.remote.Port(), Proto: packet.ProtoTCP, V: 6,
	}
	if s.key.local.Addr().Is4() {
		k.V = 4
	}
	s.h.output(segment(&k, flags, seq, s.rcv, s.space(), s.mss, payload))
}

func (s *Stream) sendSYN() {
	if s.state == opening {
		s.emit(packet.TCPSyn, s.una, nil)
	} else {
		s.emit(packet.TCPSyn|packet.TCPAck, s.una, nil)
	}
}

// Read implements net.Conn.
func (s *Stream) Read(b []byte) (int, error) {
	for {
		if s.readD.passed() {
			return 0, s.opError("read", os.ErrDeadlineExceeded)
		}
		s.h.net.mu.Lock()
		n, err := s.take(b)
		s.h.net.mu.Unlock()
		switch {
		case err == io.EOF:
			return 0, err
		case err != nil:
			return 0, s.opError("read", err)
		case n > 0 || len(b) == 0:
			return n, nil
		}
		select {
		case <-s.rd:
		case <-s.done:
		case <-s.readD.wait():
		}
	}
}

// take reads what there is; nothing and no error means to wait.
func (s *Stream) take(b []byte) (int, error) {
	switch {
	case s.closed:
		return 0, net.ErrClosed
	case len(s.in) > 0:
		narrow := s.space() < streamBuffer/4
		n := copy(b, s.in)
		s.in = s.in[n:]
		if narrow && s.space() >= streamBuffer/4 && s.state == open {
			s.emit(packet.TCPAck, s.nxt, nil) // tells that there is room again
		}
		if len(s.in) > 0 || s.eof {
			s.rd.set()
		}
		return n, nil
	case s.err != nil:
		return 0, s.err
	case s.eof:
		s.rd.set()
		return 0, io.EOF
	}
	return 0, nil
}

// Write implements net.Conn. It returns when all of b has found room in the send buffer.
func (s *Stream) Write(b []byte) (n int, err error) {
	for {
		if s.writeD.passed() {
			return n, s.opError("write", os.ErrDeadlineExceeded)
		}
		s.h.net.mu.Lock()
		switch {
		case s.closed:
			err = net.ErrClosed
		case s.err != nil:
			err = s.err
		case s.finQueued:
			err = syscall.EPIPE
		default:
			m := min(len(b), streamBuffer-len(s.out))
			s.out = append(s.out, b[:m]...)
			n, b = n+m, b[m:]
			s.push()
		}
		s.h.net.mu.Unlock()
		if err != nil {
			return n, s.opError("write", err)
		}
		if len(b) == 0 {
			return n, nil
		}
		select {
		case <-s.wr:
		case <-s.done:
		case <-s.writeD.wait():
		}
	}
}

// CloseWrite tells the other side that nothing more will come; reading goes on.
func (s *Stream) CloseWrite() error {
	s.h.net.mu.Lock()
	defer s.h.net.mu.Unlock()
	if s.closed {
		return s.opError("close", net.ErrClosed)
	}
	if s.err != nil {
		return s.opError("close", s.err)
	}
	s.finQueued = true
	s.push()
	return nil
}

// Close ends the stream. What was written is still delivered, if the network permits.
func (s *Stream) Close() error {
	s.h.net.mu.Lock()
	defer s.h.net.mu.Unlock()
	if s.closed {
		return s.opError("close", net.ErrClosed)
	}
	s.closed = true
	if s.err == nil {
		close(s.done)
		s.finQueued = true
		if len(s.in) > 0 { // the other side must learn that not all was read
			s.reset()
			return nil
		}
		s.push()
		s.arm()
	}
	return nil
}

// reset tells the other side that the stream is no more.
func (s *Stream) reset() {
	s.emit(packet.TCPRst|packet.TCPAck, s.nxt, nil)
	s.forget()
}

// fail breaks the stream.
func (s *Stream) fail(err error) {
	s.forget()
	if s.err != nil {
		return
	}
	s.err = err
	if !s.closed {
		close(s.done)
	}
	select {
	case <-s.opened:
	default:
		close(s.opened)
	}
}

// forget takes the stream off the host.
func (s *Stream) forget() {
	if s.state != over {
		s.state = over
		delete(s.h.streams, s.key)
	}
}

// icmp takes an ICMP error about a segment: it ends an attempt to open, and else is no more than a hint (RFC 5461).
func (s *Stream) icmp(v uint8, e packet.ICMP) {
	switch mtu := announcedMTU(v, e); {
	case mtu > 0:
		s.mss = min(s.mss, mtu-s.overhead())
		if s.state == open {
			s.nxt = s.una
			s.finSent = false
			s.push()
		}
	case s.state == opening && (v == 4 && e.Type == unreachable4 || v == 6 && e.Type == unreachable6):
		s.fail((&ICMPError{To: s.key.remote, Family: int(v), ICMP: e}).Unwrap())
	}
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(s.key.local) }

// RemoteAddr implements net.Conn: the other end as it looks from here, which is its NAT's address if there is one.
func (s *Stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.key.remote) }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.readD.set(t)
	s.writeD.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { s.readD.set(t); return nil }

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { s.writeD.set(t); return nil }

func (s *Stream) opError(op string, err error) error {
	var done *net.OpError
	if errors.As(err, &done) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}
