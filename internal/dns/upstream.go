package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// rounds is how often each upstream is asked, as resolv.conf's default for attempts.
const rounds = 2

// silentTime is how long an upstream that did not answer is asked only after the others.
const silentTime = 30 * time.Second

// upstreams remembers which resolvers did not answer lately. The zero value is ready for use.
type upstreams struct {
	mu      sync.Mutex // guards the following
	known   []netip.AddrPort
	silent  map[netip.AddrPort]time.Time // until when
	failing bool
}

// order returns the list with the silent ones last, and whether it is another list than that of the last call.
func (u *upstreams) order(list []netip.AddrPort, now time.Time) (ordered []netip.AddrPort, changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if changed = !slices.Equal(u.known, list); changed {
		u.known, u.silent = slices.Clone(list), make(map[netip.AddrPort]time.Time)
	}
	ordered = slices.Clone(list)
	slices.SortStableFunc(ordered, func(a, b netip.AddrPort) int {
		return compareBool(now.Before(u.silent[a]), now.Before(u.silent[b]))
	})
	return ordered, changed
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// heard and missed record whether an upstream answered.
func (u *upstreams) heard(a netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.silent, a)
}

func (u *upstreams) missed(a netip.AddrPort, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if slices.Contains(u.known, a) {
		u.silent[a] = now.Add(silentTime)
	}
}

// setFailing reports whether the state "no upstream answers" changed.
func (u *upstreams) setFailing(v bool) (changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	changed, u.failing = u.failing != v, v
	return changed
}

var errNoUpstream = errors.New("no resolver is configured")

// resolve returns an answer with the query's own ID and question, from the cache or from one of the upstreams, of which only those at
// private addresses are asked if private is true. It takes at most queryTime, and returns ctx's error when that ends before.
func (r *Route) resolve(ctx context.Context, log *slog.Logger, query *message, tcp, private bool) (a exchangeResult, cached bool, err error) {
	now := time.Now()
	list, changed := r.pool.order(r.upstreams(), now)
	if changed {
		r.cache.flush() // another network may give the same name another address
	}
	if private {
		list = slices.DeleteFunc(list, func(a netip.AddrPort) bool { return !isPrivateResolver(a) })
	}
	if a.m, cached = r.cache.get(query, now); cached {
		if len(list) > 0 {
			a.from = list[0]
		}
		return a, true, nil
	}
	epoch := r.cache.currentEpoch()
	a, err = r.flights.do(ctx, query, tcp, func() (exchangeResult, error) {
		a, err := r.forward(ctx, log, list, query, tcp)
		if err == nil {
			r.cache.put(query, &a.m, epoch, time.Now())
		}
		return a, err
	})
	return a, false, err
}

// forward asks the upstreams one after another until one gives an answer that is worth passing on. The answer has the
// query's ID and question. An error names the upstream in a, if there is one to name.
func (r *Route) forward(parent context.Context, log *slog.Logger, list []netip.AddrPort, query *message, tcp bool) (a exchangeResult, err error) {
	ctx, cancel := context.WithTimeout(parent, queryTime)
	defer cancel()
	answered := false
	err = errNoUpstream
	for range rounds {
		for _, to := range list {
			m, failure := r.ask(ctx, to, query, tcp)
			switch {
			case parent.Err() != nil: // nothing can be said about the upstream
				return exchangeResult{from: to}, parent.Err()
			case failure != nil:
				if !answered {
					a.from, err = to, failure
				}
				r.pool.missed(to, time.Now())
				log.Debug("dns upstream gave no answer", "upstream", to, "err", failure)
			default:
				r.pool.heard(to)
				a, answered = exchangeResult{m: m, from: to}, true
				if !gaveUp(m.rcode()) {
					r.noteFailing(log, false, nil)
					return a, nil
				}
			}
			if ctx.Err() != nil {
				break
			}
		}
		if answered || ctx.Err() != nil { // everyone who is there has said that it cannot
			break
		}
	}
	r.noteFailing(log, !answered, err)
	if answered {
		err = nil
	}
	return a, err
}

// gaveUp reports whether another upstream may know better.
func gaveUp(rcode dnsmessage.RCode) bool {
	return rcode == dnsmessage.RCodeServerFailure || rcode == dnsmessage.RCodeRefused || rcode == dnsmessage.RCodeNotImplemented
}

func (r *Route) noteFailing(log *slog.Logger, failing bool, err error) {
	switch {
	case !r.pool.setFailing(failing):
	case failing:
		log.Warn("dns: no upstream answers", "resolvers", r.name, "err", err)
	default:
		log.Info("dns: upstreams answer again", "resolvers", r.name)
	}
}

// ask sends the query to one upstream by UDP, and by TCP when the answer is cut and the client can take more.
func (r *Route) ask(ctx context.Context, to netip.AddrPort, query *message, tcp bool) (message, error) {
	m, err := r.exchange(ctx, "udp", to, query)
	if err != nil || !m.has(flagTC) || !tcp && query.udpSize() <= safeUDPSize {
		return m, err
	}
	whole, err := r.exchange(ctx, "tcp", to, query)
	if err != nil && !tcp {
		return m, nil // the client learns from TC that it has to come back by TCP
	}
	return whole, err
}

// exchange sends one query on a socket of its own and waits up to attemptTime for the answer to it.
func (r *Route) exchange(ctx context.Context, network string, to netip.AddrPort, query *message) (m message, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	c, err := r.dial(ctx, network, to.String())
	if err != nil {
		return m, fmt.Errorf("ask %s: %w", to, err)
	}
	defer c.Close()
	// A deadline in the past ends the reads and writes when the time is over or the server closes.
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	wire := outgoing(query)
	if network == "tcp" {
		m, err = exchangeStream(c, wire)
	} else {
		m, err = exchangeDatagram(c, wire)
	}
	if err != nil {
		return m, fmt.Errorf("ask %s by %s: %w", to, network, err)
	}
	m.adopt(query)
	return m, nil
}

// outgoing returns a copy of the query with an ID of its own (RFC 5452 section 9.2) and an EDNS size that we can receive.
func outgoing(query *message) *message {
	out := *query
	out.raw = slices.Clone(query.raw)
	var id [2]byte
	rand.Read(id[:])
	out.setID(binary.BigEndian.Uint16(id[:]))
	if out.hasOPT() {
		binary.BigEndian.PutUint16(out.raw[out.optRecord().ttlAt-2:], uint16(out.udpSize()))
	}
	return &out
}

// exchangeDatagram ignores what is not the answer: a forger must not be able to end the wait.
func exchangeDatagram(c net.Conn, query *message) (message, error) {
	if _, err := c.Write(query.raw); err != nil {
		return message{}, err
	}
	buf := make([]byte, maxUDPSize+1)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return message{}, err
		}
		if m, ok := readAnswer(buf[:n], query); ok {
			return m, nil
		}
	}
}

var errNotAnAnswer = errors.New("reply is malformed or does not belong to the query")

func exchangeStream(c net.Conn, query *message) (message, error) {
	if err := writeMessage(c, query.raw); err != nil {
		return message{}, err
	}
	b, err := readMessage(c, 0xffff)
	if err != nil {
		return message{}, err
	}
	m, ok := readAnswer(b, query)
	if !ok {
		return m, errNotAnAnswer
	}
	return m, nil
}

// readAnswer parses raw if it is an answer to query (RFC 5452 section 9.1).
func readAnswer(raw []byte, query *message) (m message, ok bool) {
	m, ok = parse(raw)
	if len(raw) < headerLen || m.id() != query.id() || !m.has(flagQR) || m.has(maskOpcode) {
		return m, false
	}
	if !ok {
		if !m.has(flagTC) && len(raw) <= maxUDPSize {
			return m, false
		}
		// Cut within a record, by its sender or by our buffer: what stays is that there is more.
		clear(raw[6:headerLen])
		if m, ok = parse(raw); !ok {
			return m, false
		}
		raw[2] |= flagTC >> 8
	}
	if !m.hasQuestion() { // some servers send nothing but a header with the reason
		bare := len(m.records) == 0 && m.rcode() != dnsmessage.RCodeSuccess && m.rcode() != dnsmessage.RCodeNameError
		return m, bare
	}
	return m, sameQuestion(&m, query)
}

// adopt gives the answer the ID of the query and its question, in the case in which the client wrote it.
func (m *message) adopt(query *message) {
	if !m.hasQuestion() {
		*m, _ = parse(reply(query, m.rcode()))
	}
	m.setID(query.id())
	copy(m.question(), query.question())
}
