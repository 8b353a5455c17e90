package gather

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/traversal/stun"
)

// Handle takes a message that has arrived on a socket. It returns false, and does nothing, if that is not an answer to a question
// of the Gatherer's. It never blocks and does not keep msg.
func (g *Gatherer) Handle(msg []byte, socket uint32, from netip.AddrPort) bool {
	if !stun.Is(msg) || msg[0]&0x01 == 0 { // no response
		return false
	}
	if socket == 0 && g.stun.Handle(msg, from) {
		return true
	}
	g.mu.Lock()
	clients := g.clients[socket]
	g.mu.Unlock()
	return slices.ContainsFunc(clients, func(c *stun.Client) bool { return c.Handle(msg, from) })
}

const (
	maxDestinations = 4
	askPatience     = 700 * time.Millisecond // allows three tries
	askGrace        = 100 * time.Millisecond // for more answers,
	enough          = 2                      // after so many
)

// errNoServer is what Ask fails with while no server has answered.
var errNoServer = errors.New("no STUN server answers")

// Ask returns where a socket is seen, by two destinations at least if so many answer, in the order in which they were asked: where
// mappings depend on the destination, that is the order of their making. It takes one round trip; up to 100 ms more where a destination
// is silent, and 700 ms where only one answers. Destinations of a family that the socket does not have are left out.
func (g *Gatherer) Ask(ctx context.Context, socket uint32) ([]netip.AddrPort, error) {
	to := g.destinations()
	if len(to) == 0 {
		return nil, fmt.Errorf("ask where socket %d is seen: %w", socket, errNoServer)
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	q := &inquiry{g: g, socket: socket, sent: map[netip.AddrPort]chan struct{}{}}
	c := q.open()
	defer q.close(c)
	answers, errs := make([]netip.AddrPort, len(to)), make([]error, len(to))
	var all sync.WaitGroup
	var answered atomic.Int32
	for i, d := range to {
		sent := q.expect(d)
		all.Go(func() {
			a, err := c.Bind(ctx, d)
			answers[i], errs[i] = a.Mapped, err
			if err == nil && answered.Add(1) == enough {
				time.AfterFunc(askGrace, cancel)
			}
		})
		<-sent
	}
	all.Wait()
	answers = slices.DeleteFunc(answers, func(a netip.AddrPort) bool { return !a.IsValid() })
	if len(answers) == 0 {
		return nil, fmt.Errorf("ask where socket %d is seen: %w", socket, errors.Join(errs...))
	}
	return answers, nil
}

// inquiry is one call of Ask. It waits until a request has left before it sends the next.
type inquiry struct {
	g      *Gatherer
	socket uint32

	mu   sync.Mutex // guards the following
	sent map[netip.AddrPort]chan struct{}
}

func (q *inquiry) open() *stun.Client {
	c := stun.NewClient(q.send)
	q.g.mu.Lock()
	defer q.g.mu.Unlock()
	q.g.clients[q.socket] = append(slices.Clone(q.g.clients[q.socket]), c)
	return c
}

func (q *inquiry) close(c *stun.Client) {
	q.g.mu.Lock()
	defer q.g.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(q.g.clients[q.socket]), func(o *stun.Client) bool { return o == c })
	if len(rest) == 0 {
		delete(q.g.clients, q.socket)
	} else {
		q.g.clients[q.socket] = rest
	}
}

// expect returns a channel that is closed when the first request to a destination has left, or could not.
func (q *inquiry) expect(to netip.AddrPort) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent[to] = make(chan struct{})
	return q.sent[to]
}

func (q *inquiry) send(msg []byte, to netip.AddrPort) error {
	err := q.g.send(q.socket, msg, to)
	q.mu.Lock()
	defer q.mu.Unlock()
	if c := q.sent[to]; c != nil {
		close(c)
		delete(q.sent, to)
	}
	return err
}

// destinations are what is asked about a helper socket: of each family one that answers, and then others, at other addresses
// first.
func (g *Gatherer) destinations() (list []netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, fam := range []uint8{4, 6} {
		var known []netip.AddrPort
		for _, s := range g.sources {
			for _, o := range s.seen {
				if s.service == nil && o.family == fam && o.endpoint.IsValid() {
					known = append(known, o.to)
				}
			}
		}
		for _, o := range g.families[index(fam)].others {
			known = append(known, o.To)
		}
		list = append(list, spread(known)...)
	}
	return list
}

// spread chooses some destinations, those at different addresses first.
func spread(known []netip.AddrPort) (chosen []netip.AddrPort) {
	for _, again := range []bool{false, true} {
		for _, to := range known {
			have := slices.ContainsFunc(chosen, func(c netip.AddrPort) bool { return c.Addr() == to.Addr() })
			if have == again && !slices.Contains(chosen, to) && len(chosen) < maxDestinations {
				chosen = append(chosen, to)
			}
		}
	}
	return chosen
}
