//go:build linux

package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Hold opens flows, each of which has been answered once, and keeps them. Every flow is a socket, and so a port and an open
// file, of its own.
type Hold struct {
	To      string        // a Server's address and port
	Network string        // tcp or udp; zero: tcp
	Flows   int           // zero: 1000
	Timeout time.Duration // of one flow's answer, with all attempts; zero: 10 s
}

// holders is how many flows are asked at once.
const holders = 16

// Held are flows that are kept until Close. Nothing moves on them by itself.
type Held struct {
	hold  Hold
	flows []net.Conn
	asked uint64 // number of the last question, so that a late answer is not taken for one to the next
}

// Open opens the flows. It returns an error unless all of them were answered.
func (h Hold) Open(ctx context.Context) (*Held, error) {
	if h.Network == "" {
		h.Network = "tcp"
	}
	if h.Flows == 0 {
		h.Flows = 1000
	}
	if h.Timeout == 0 {
		h.Timeout = 10 * time.Second
	}
	if h.Network != "tcp" && h.Network != "udp" || h.Flows < 0 {
		return nil, fmt.Errorf("hold %d flows of %q: the network is tcp or udp, and the flows are at least 1", h.Flows, h.Network)
	}
	to, err := target(h.To)
	if err != nil {
		return nil, err
	}
	held := &Held{hold: h, flows: make([]net.Conn, h.Flows)}
	if alive, err := held.each(ctx, func(ctx context.Context, i int) error { return held.open(ctx, to, i) }); err != nil {
		held.Close()
		return nil, fmt.Errorf("hold: %d of %d flows to %v: %w", alive, h.Flows, to, err)
	}
	return held, nil
}

// Len is the number of flows.
func (h *Held) Len() int { return len(h.flows) }

// Check has each flow answered once more and returns how many were. err is about the first that was not.
func (h *Held) Check(ctx context.Context) (alive int, err error) {
	h.asked++
	return h.each(ctx, func(ctx context.Context, i int) error { return h.ask(ctx, i) })
}

// Close ends the flows.
func (h *Held) Close() {
	for _, c := range h.flows {
		if c != nil {
			c.Close()
		}
	}
}

// each calls f for every flow and counts where it succeeds.
func (h *Held) each(ctx context.Context, f func(ctx context.Context, i int) error) (succeeded int, err error) {
	var next, good atomic.Int64
	errs := make([]error, holders)
	var wg sync.WaitGroup
	for w := range holders {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(h.flows) {
					return
				}
				err := f(ctx, i)
				if err == nil {
					good.Add(1)
				} else if errs[w] == nil {
					errs[w] = fmt.Errorf("flow %d: %w", i+1, err)
				}
			}
		})
	}
	wg.Wait()
	for _, e := range append([]error{ctx.Err()}, errs...) {
		if e != nil {
			return int(good.Load()), e
		}
	}
	return int(good.Load()), nil
}

func (h *Held) open(ctx context.Context, to netip.AddrPort, i int) (err error) {
	if h.hold.Network == "udp" {
		var d net.Dialer
		h.flows[i], err = d.DialContext(ctx, "udp", to.String())
	} else {
		h.flows[i], err = dialService(ctx, to, echoService)
		if err == nil {
			h.flows[i].SetReadDeadline(time.Now().Add(h.hold.Timeout))
			_, err = io.ReadFull(h.flows[i], make([]byte, 1))
		}
	}
	if err != nil {
		return err
	}
	return h.ask(ctx, i)
}

// ask has one flow answered.
func (h *Held) ask(ctx context.Context, i int) error {
	c := h.flows[i]
	question := binary.BigEndian.AppendUint64(nil, uint64(i))
	question = binary.BigEndian.AppendUint64(question, h.asked)
	if h.hold.Network == "tcp" {
		c.SetDeadline(time.Now().Add(h.hold.Timeout))
		if _, err := c.Write(question); err != nil {
			return err
		}
		answer := make([]byte, len(question))
		if _, err := io.ReadFull(c, answer); err != nil {
			return err
		}
		if !bytes.Equal(answer, question) {
			return errors.New("the answer is another one")
		}
		return nil
	}
	const again = 500 * time.Millisecond
	answer := make([]byte, 64)
	for end := time.Now().Add(h.hold.Timeout); time.Now().Before(end) && ctx.Err() == nil; {
		if _, err := c.Write(question); err != nil && !passing(err) {
			return err
		}
		c.SetReadDeadline(time.Now().Add(again))
		for n := 0; ; {
			var err error
			if n, err = c.Read(answer); err != nil {
				break // at the latest when the deadline has come
			}
			if bytes.Equal(answer[:n], question) {
				return nil
			}
		}
	}
	return errors.New("no answer")
}
