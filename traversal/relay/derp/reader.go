package derp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrFrameTooLong is wrapped by what Next returns for a frame above the limit. Nothing can be read after it.
var ErrFrameTooLong = errors.New("frame too long")

const (
	// smallSize is what a connection holds while it is idle: room for one datagram of WireGuard's.
	smallSize = 2 << 10
	// bigSize takes a frame with the longest packet; borrowed while there is more to read than fits the small buffer.
	bigSize = MaxPacket + 1<<10
	// maxEmptyReads bounds how often in a row a reader may return nothing.
	maxEmptyReads = 100
)

var bigBuffers = sync.Pool{New: func() any { return new([bigSize]byte) }}

// Reader splits a stream into frames. It reads as many of them at once as have arrived: into a small buffer of its own, and into
// a big one of a common pool as long as frames come faster than they are taken. A Reader that waits at the end of a frame holds
// only the small one.
type Reader struct {
	r     io.Reader
	max   int
	buf   []byte         // small, *big or, for a longer frame, one of its own
	small []byte         // nil until first used
	big   *[bigSize]byte // nil unless borrowed
	start int            // buf[start:end] is read but not taken
	end   int
	taken int   // length of the frame that the last call returned
	err   error // of the stream; returned after all that came before it
}

// NewReader returns a Reader of r that refuses payloads of more than maxPayload bytes.
func NewReader(r io.Reader, maxPayload int) *Reader { return &Reader{r: r, max: maxPayload} }

// SetLimit changes the longest payload allowed from the next frame on.
func (r *Reader) SetLimit(maxPayload int) { r.max = maxPayload }

// Preload puts bytes in front of the stream: those that whoever read the HTTP header has read too many. It copies b, and must come
// before the first Next.
func (r *Reader) Preload(b []byte) {
	if len(b) > 0 {
		r.buf = append([]byte(nil), b...)
		r.start, r.end = 0, len(b)
	}
}

// Buffered returns how many bytes are read but not yet returned by Next; at zero Next may block.
func (r *Reader) Buffered() int { return r.end - r.start - r.taken }

// Ready reports whether a whole frame is buffered, so that Next will not block.
func (r *Reader) Ready() bool {
	b := r.buf[r.start+r.taken : r.end]
	return len(b) >= HeaderLen && uint64(len(b)) >= HeaderLen+uint64(binary.BigEndian.Uint32(b[1:]))
}

// Next returns the next frame. The payload is valid until the next call. The error is io.EOF if the stream ended between
// frames, io.ErrUnexpectedEOF within one, else that of the stream or one that wraps ErrFrameTooLong; all are final.
func (r *Reader) Next() (t Type, payload []byte, err error) {
	r.start += r.taken
	r.taken = 0
	for {
		need := HeaderLen
		if have := r.end - r.start; have >= HeaderLen {
			n := binary.BigEndian.Uint32(r.buf[r.start+1:])
			if uint64(n) > uint64(r.max) {
				t := Type(r.buf[r.start])
				r.fail(fmt.Errorf("frame %v of %d bytes, limit %d: %w", t, n, r.max, ErrFrameTooLong))
				return 0, nil, r.err
			}
			need += int(n)
			if have >= need {
				r.taken = need
				frame := r.buf[r.start : r.start+need : r.start+need]
				return Type(frame[0]), frame[HeaderLen:], nil
			}
		}
		if err := r.fill(need); err != nil {
			return 0, nil, err
		}
	}
}

// fill reads once, so that the buffer may hold need bytes of the frame at start.
func (r *Reader) fill(need int) error {
	if r.err != nil {
		return r.fail(r.err)
	}
	r.makeRoom(need)
	for range maxEmptyReads {
		n, err := r.r.Read(r.buf[r.end:])
		r.end += n
		r.err = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return r.fail(err)
		}
	}
	return r.fail(io.ErrNoProgress)
}

// makeRoom chooses the buffer to read into next, with room for need bytes or at least one more than there are, and moves what is
// left over to its beginning.
func (r *Reader) makeRoom(need int) {
	left := r.buf[r.start:r.end]
	buf, borrowed := r.buf, r.big
	switch {
	case len(left) == 0:
		buf, r.big = r.ownSmall(), nil
	case need > len(r.buf) && len(r.buf) >= bigSize:
		// By doubling, so that memory follows what has arrived and not what a header announces.
		if len(left) == len(r.buf) {
			buf, r.big = make([]byte, min(need, 2*len(left))), nil
		}
	case len(r.buf) < smallSize && len(left) < smallSize:
		buf = r.ownSmall() // there are only preloaded bytes
	case len(r.buf) < bigSize && r.end == len(r.buf):
		// The last read filled the buffer, so that there is more to read. That a header announces more is no reason: a client
		// that stops behind it would hold the memory.
		r.big = bigBuffers.Get().(*[bigSize]byte)
		buf = r.big[:]
	case r.start+need <= len(r.buf) && len(left) > smallSize:
		return // rather read into less room than move so much
	}
	if r.start > 0 || len(buf) != len(r.buf) {
		r.end = copy(buf, left)
		r.buf, r.start = buf, 0
	}
	if borrowed != nil && r.big != borrowed {
		bigBuffers.Put(borrowed)
	}
}

func (r *Reader) ownSmall() []byte {
	if r.small == nil {
		r.small = make([]byte, smallSize)
	}
	return r.small
}

// fail makes err the final one and lets go of all memory.
func (r *Reader) fail(err error) error {
	if err == io.EOF && r.end > r.start {
		err = io.ErrUnexpectedEOF
	}
	if r.big != nil {
		bigBuffers.Put(r.big)
		r.big = nil
	}
	r.buf, r.small, r.start, r.end = nil, nil, 0, 0
	r.err = err
	return err
}
