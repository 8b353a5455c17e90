package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// The schedule of a request: sent at 0, 250 and 750 ms, given up at 1.75 s. RFC 6886 section 3.1 goes on to 64 s and RFC 6887
// section 8.1.1 starts with 3 s; here the whole request is made again later, as the caller sees fit.
const (
	firstWait = 250 * time.Millisecond // doubled each time
	allTries  = 3

	maxDatagram = 2048 // longer ones are cut, and then are none of these protocols
)

// link is the way to one gateway. It keeps nothing open.
type link struct {
	gw  Gateway
	cfg *Config
	*counters
}

// verdict is what becomes of a datagram.
type verdict uint8

const (
	taken verdict = iota
	malformed
	mismatch
)

// count keeps account of what was not taken.
func (l *link) count(v verdict) {
	switch v {
	case taken:
		l.answers.Add(1)
	case malformed:
		l.malformed.Add(1)
	case mismatch:
		l.mismatch.Add(1)
	}
}

// ask sends a request to the gateway's port 5351 until accept takes an answer. The socket is connected, so that the kernel keeps
// out what does not come from there, and tells when nobody listens. The error wraps ErrNoAnswer, or is ctx's.
func (l *link) ask(ctx context.Context, request []byte, accept func(b []byte) verdict) error {
	c, err := l.cfg.Dial(ctx, "udp", l.gw.Local, netip.AddrPortFrom(l.gw.Addr, servicePort))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, maxDatagram)
	wait := firstWait
	for range allTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		l.sent.Add(1)
		if _, err := c.Write(request); err != nil {
			return fmt.Errorf("%w: %w", ErrNoAnswer, err)
		}
		c.SetReadDeadline(time.Now().Add(wait))
		if ctx.Err() != nil {
			return ctx.Err() // its function may have come before the deadline above
		}
		if err := l.await(c, buf, accept); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		wait *= 2
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w to %d tries", ErrNoAnswer, allTries)
}

// await reads until accept is content.
func (l *link) await(c net.Conn, buf []byte, accept func(b []byte) verdict) error {
	for {
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNoAnswer, err) // refused, as a rule
		}
		v := accept(buf[:n])
		l.count(v)
		if v == taken {
			return nil
		}
	}
}
