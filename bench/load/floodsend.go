//go:build linux

package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A flood's datagram, numbers in network byte order:
//
//	0       8       16
//	session number  pattern
//
// The number of the first is 0. The pattern is the same in all datagrams of a session.
const (
	numberAt  = 8
	patternAt = 16
	// FloodMinSize is the length of a flood's shortest datagrams.
	FloodMinSize = patternAt
	// floodMaxSize is what one datagram can carry over IPv4.
	floodMaxSize = 65507
	// maxSegments is what all kernels with UDP_SEGMENT cut a message into.
	maxSegments = 64
)

type session [numberAt]byte

// datagram returns one with the number 0.
func (s session) datagram(size int) []byte {
	b := make([]byte, size)
	copy(b, s[:])
	for i := patternAt; i < size; i++ {
		b[i] = s[i%len(s)] + byte(i)
	}
	return b
}

// sent is what a sender has done.
type sent struct {
	packets, errors int64
	took            time.Duration
}

// send sends numbered datagrams by a connected socket until Warmup and Length are over.
func (f Flood) send(ctx context.Context, socket *datagramSocket, id session) (s sent, err error) {
	g := newFloodSender(socket, id, f)
	start := time.Now()
	end := f.Warmup + f.Length
	for ctx.Err() == nil {
		s.took = time.Since(start)
		if s.took >= end {
			break
		}
		n := g.room()
		if f.Rate > 0 {
			if n = min(n, g.due(s.took)); n == 0 {
				sleepUntil(start.Add(g.nextDue()))
				continue
			}
		}
		if err := g.send(n, &s); err != nil {
			return s, err
		}
	}
	return s, ctx.Err()
}

// floodSender has the buffers of one batch.
type floodSender struct {
	spec     Flood
	batch    *batch
	bufs     [][]byte // a message each
	next     uint64   // number of the next datagram
	skipped  float64  // datagrams that were due while the machine did something else
	messages int
}

func newFloodSender(socket *datagramSocket, id session, f Flood) *floodSender {
	g := &floodSender{spec: f, batch: newBatch(socket, unix.SYS_SENDMMSG)}
	g.messages = max(1, min(maxBatch, 256/f.Segments))
	one := id.datagram(f.Size)
	for range g.messages {
		var b []byte
		for range f.Segments {
			b = append(b, one...)
		}
		g.bufs = append(g.bufs, b)
	}
	return g
}

// room is how many datagrams go into one batch.
func (g *floodSender) room() int { return g.messages * g.spec.Segments }

// due is how many datagrams ought to have gone by now and have not, in whole messages; the first is due at once. A generator
// that was held up for long does not make up for it: that would be another load than the one asked for.
func (g *floodSender) due(elapsed time.Duration) int {
	const patience = 20 * time.Millisecond
	behind := elapsed.Seconds()*g.spec.Rate - float64(g.next) - g.skipped
	if late := behind - patience.Seconds()*g.spec.Rate; late > 0 {
		g.skipped += late
		behind -= late
	}
	if behind < 0 {
		return 0
	}
	return (int(behind)/g.spec.Segments + 1) * g.spec.Segments
}

// nextDue is when the next message will be due, after the start.
func (g *floodSender) nextDue() time.Duration {
	return time.Duration((float64(g.next) + g.skipped) / g.spec.Rate * 1e9)
}

// send sends n datagrams, whole messages.
func (g *floodSender) send(n int, s *sent) error {
	count := n / g.spec.Segments
	for i := range count {
		for at := 0; at < len(g.bufs[i]); at += g.spec.Size {
			binary.BigEndian.PutUint64(g.bufs[i][at+numberAt:], g.next)
			g.next++
		}
		g.batch.set(i, g.bufs[i])
		if g.spec.Segments > 1 {
			g.batch.setSegment(i, g.spec.Size)
		}
	}
	for at := 0; at < count; {
		n, err := g.batch.send(at, count)
		at += n
		s.packets += int64(n * g.spec.Segments)
		switch {
		case err == nil:
		case passing(err):
			s.errors++
			at++
		case errors.Is(err, unix.EIO) && g.spec.Segments > 1:
			return fmt.Errorf("flood: the device has no checksum offload, which UDP_SEGMENT needs; use one segment: %w", err)
		default:
			return fmt.Errorf("flood: %w", err)
		}
	}
	return nil
}

// passing reports whether an error of sending is about what became of an earlier datagram, or about room.
func passing(err error) bool {
	for _, e := range []error{unix.ENOBUFS, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
