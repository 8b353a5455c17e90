package proxy

import (
	"io"
	"strconv"
	"sync"
)

const (
	copyLen    = 32 << 10
	chunkFront = 16 // room for a chunk's size and its line end
	chunkBack  = 64 // room for the end of the last chunk and a body without trailer
)

// An httpCopy carries one body from src to dst as it comes: each piece is written once, with the head in front of the first
// and the end behind the last where they are at hand.
type httpCopy struct {
	dst     io.Writer
	src     *httpBody
	chunked bool   // dst gets chunks
	head    []byte // to go first; nil once it has gone
	ready   bool   // some of the body is there already: the head waits for it
	began   func() // when the first byte has been read, if not nil
	ended   func() // when the last byte has been read, before it is written, if not nil

	moved  int64
	failed error // of dst; errors of src are run's
}

// run copies all of the body. The error is that of src or dst.
func (c *httpCopy) run(buffers *sync.Pool) error {
	if !c.ready || c.src.ended {
		if err := c.write(c.head); err != nil {
			return err
		}
		c.head = nil
		if c.src.ended {
			c.tell(&c.ended)
			return nil
		}
	}
	held := buffers.Get().(*[]byte)
	defer buffers.Put(held)
	buf := *held
	from := chunkFront
	if len(c.head) <= copyLen/4 {
		from += len(c.head)
	} else if err := c.write(c.head); err != nil {
		return err
	} else {
		c.head = nil
	}
	for {
		n, err := c.src.Read(buf[from : len(buf)-chunkBack])
		if n > 0 {
			c.tell(&c.began)
		}
		if err == io.EOF {
			c.tell(&c.ended)
		}
		if n > 0 || err == io.EOF {
			if werr := c.piece(buf, from, n, err == io.EOF); werr != nil {
				return werr
			}
		}
		c.moved += int64(n)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		from = chunkFront
	}
}

// piece writes buf[from:from+n] with what belongs around it. There is room for that in buf.
func (c *httpCopy) piece(buf []byte, from, n int, last bool) error {
	end := from + n
	if c.chunked {
		if n > 0 {
			var size [chunkFront]byte
			front := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
			from -= len(front)
			copy(buf[from:], front)
			end += copy(buf[end:], "\r\n")
		}
		if last && len(c.src.trailer) == 0 {
			end += copy(buf[end:], "0\r\n\r\n")
		}
	}
	from -= len(c.head)
	copy(buf[from:], c.head)
	c.head = nil
	if err := c.write(buf[from:end]); err != nil {
		return err
	}
	if trailer := c.src.trailer; last && c.chunked && len(trailer) > 0 {
		return c.write(append(trailerFields(trailer).append([]byte("0\r\n")), "\r\n"...))
	}
	return nil
}

func (c *httpCopy) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_, err := c.dst.Write(b)
	c.failed = err
	return err
}

func (c *httpCopy) tell(f *func()) {
	if *f != nil {
		(*f)()
		*f = nil
	}
}
