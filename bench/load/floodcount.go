//go:build linux

package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// counter is the receiving side of a flood. It judges every datagram.
type counter struct {
	spec    Flood
	want    []byte // a datagram of the session
	seen    numbers
	highest uint64

	first, last      time.Time // arrivals
	received, window int64     // different ones; those within Length
	duplicates       int64
	reordered        int64
	corrupt          int64
	drops            int64 // of the socket
}

// hello is the number of a datagram that opens the way.
const hello = ^uint64(0)

func newCounter(f Flood, id session) *counter { return &counter{spec: f, want: id.datagram(f.Size)} }

// message judges what the kernel has joined: datagrams of segment bytes, the last maybe shorter; 0 means one datagram.
func (c *counter) message(b []byte, segment int, now time.Time) {
	if segment == 0 {
		segment = len(b)
	}
	for len(b) > 0 {
		n := min(segment, len(b))
		c.datagram(b[:n], now)
		b = b[n:]
	}
}

func (c *counter) datagram(b []byte, now time.Time) {
	if len(b) < patternAt || !bytes.Equal(b[:numberAt], c.want[:numberAt]) {
		return // of another session, or of nobody
	}
	number := binary.BigEndian.Uint64(b[numberAt:])
	if number == hello {
		return
	}
	if len(b) != len(c.want) || !bytes.Equal(b[patternAt:], c.want[patternAt:]) || number > maxNumber {
		c.corrupt++
		return
	}
	if !c.seen.add(number) {
		c.duplicates++
		return
	}
	if c.received == 0 {
		c.first = now
	} else if number < c.highest {
		c.reordered++
	}
	c.highest = max(c.highest, number)
	c.received++
	if since := now.Sub(c.first); since >= c.spec.Warmup && since < c.spec.Warmup+c.spec.Length {
		c.window++
	}
	c.last = now
}

// quiet is for how long nothing must arrive after the end of sending for a receiver to stop.
const quiet = 300 * time.Millisecond

// receive counts until ended is closed and nothing arrives any more, or until most has passed since then.
func (c *counter) receive(socket *datagramSocket, ended <-chan struct{}, most time.Duration) error {
	b := newBatch(socket, unix.SYS_RECVMMSG)
	room := make([]byte, maxBatch*messageLen)
	var end, last time.Time
	now := time.Now()
	for {
		// The deadline stands for all reads until the next one is set: with or without traffic it makes the loop look whether
		// it is over.
		if err := socket.conn.SetReadDeadline(now.Add(quiet / 6)); err != nil {
			return err
		}
		var err error
		for err == nil {
			for i := range maxBatch {
				b.set(i, room[i*messageLen:(i+1)*messageLen])
			}
			var n int
			n, err = b.receive(maxBatch)
			now = time.Now()
			for i := range n {
				length, segment := b.message(i)
				c.message(room[i*messageLen:i*messageLen+length], segment, now)
				last = now
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) && !passing(err) {
			return fmt.Errorf("flood: %w", err)
		}
		switch {
		case end.IsZero() && closed(ended):
			end = now
		case !end.IsZero() && (now.Sub(end) > most || now.Sub(end) > quiet && now.Sub(last) > quiet):
			c.drops = socket.drops()
			return nil
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// maxNumber bounds the memory that numbers take, to 512 MiB.
const maxNumber = 1<<32 - 1

// numbers is a set that grows with the highest of its members.
type numbers struct{ pages []*[pageWords]uint64 }

const (
	pageWords = 1 << 13
	pageBits  = pageWords * 64
)

// add reports whether n, which is at most maxNumber, is new.
func (s *numbers) add(n uint64) bool {
	page := int(n / pageBits)
	for len(s.pages) <= page {
		s.pages = append(s.pages, nil)
	}
	if s.pages[page] == nil {
		s.pages[page] = new([pageWords]uint64)
	}
	word, bit := &s.pages[page][n%pageBits/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
