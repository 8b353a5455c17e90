package proxy

import (
	"errors"
	"io"
	"net"
	"time"
)

// handshakeLen holds the longest message of a handshake, a request of SOCKS4a: 8 bytes, user id and name of 255 bytes each,
// and the NUL behind each of them.
const handshakeLen = 8 + 2*(maxNameLen+1)

var errTooLong = errors.New("a message longer than any right one")

// handshake reads the messages of a handshake in as few calls as they arrive in. Bytes behind them are kept.
type handshake struct {
	c          net.Conn
	start, end int // of the bytes not looked at
	buf        [handshakeLen]byte
}

// next returns the next n bytes. They are valid until the following call.
func (h *handshake) next(n int) ([]byte, error) {
	if n > len(h.buf) {
		return nil, errTooLong
	}
	for h.end-h.start < n {
		if err := h.fill(); err != nil {
			return nil, err
		}
	}
	b := h.buf[h.start : h.start+n]
	h.start += n
	return b, nil
}

// fill reads more, of whatever there is.
func (h *handshake) fill() error {
	if h.start > 0 {
		h.end = copy(h.buf[:], h.buf[h.start:h.end])
		h.start = 0
	}
	if h.end == len(h.buf) {
		return errTooLong
	}
	n, err := h.c.Read(h.buf[h.end:])
	h.end += n
	switch {
	case n > 0:
		return nil
	case err == nil:
		return io.ErrNoProgress
	case err == io.EOF && h.end > 0:
		return io.ErrUnexpectedEOF
	default:
		return err
	}
}

func (h *handshake) byte() (byte, error) {
	b, err := h.next(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// counted returns the bytes behind a byte that says how many.
func (h *handshake) counted() ([]byte, error) {
	n, err := h.byte()
	if err != nil {
		return nil, err
	}
	return h.next(int(n))
}

// text returns the bytes before a NUL, at most limit.
func (h *handshake) text(limit int) (string, error) {
	for i := 0; ; i++ {
		if i > limit {
			return "", errTooLong
		}
		if h.start+i == h.end {
			if err := h.fill(); err != nil {
				return "", err
			}
		}
		if h.buf[h.start+i] == 0 {
			s := string(h.buf[h.start : h.start+i])
			h.start += i + 1
			return s, nil
		}
	}
}

// done ends the handshake and its time, and returns the connection with the bytes that came behind it in front.
func (h *handshake) done() *prefixConn {
	h.c.SetDeadline(time.Time{}) // if it fails, the connection is closed and the next call says so
	p := &prefixConn{Conn: h.c}
	if h.start < h.end {
		p.rest = append([]byte(nil), h.buf[h.start:h.end]...) // not the whole buffer for what is mostly nothing
	}
	return p
}
