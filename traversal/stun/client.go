package stun

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	pion "github.com/pion/stun/v3"
)

const (
	// maxWaiting is how many tries of a client's may be waiting for an answer at a time.
	maxWaiting = 4096

	firstWait = 100 * time.Millisecond // after which a request is sent again; doubled each time
	allTries  = 6                      // the last waits as long as all before it: 6.3 s in all
)

// ErrNoAnswer is what Bind fails with when the server is silent.
var ErrNoAnswer = errors.New("no answer")

// ResponseError is an error response of a server's.
type ResponseError struct {
	Code   int // RFC 8489 section 14.8
	Reason string
}

func (e *ResponseError) Error() string { return fmt.Sprintf("error %d %s", e.Code, e.Reason) }

// Result is what a server says.
type Result struct {
	Mapped   netip.AddrPort // where the request came from, as the server saw it
	From     netip.AddrPort // where the answer came from
	Other    netip.AddrPort // OTHER-ADDRESS: the server's other address and port; invalid if it has none
	Origin   netip.AddrPort // RESPONSE-ORIGIN: From, as the server knows it
	RTT      time.Duration  // between the try that was answered and the answer
	Software string
}

// Client asks STUN servers over a socket that is somebody else's.
//
// A request is sent again after 100, 200, 400, 800 and 1,600 ms, and given up after 3,200 ms more (RFC 8489 section 6.2.1 has
// longer times, which are too long for gathering addresses). Every try has its own random transaction id. So an answer tells
// which try it belongs to, and its RTT is right whatever was lost; a server cannot tell the difference, as it keeps no state.
type Client struct {
	send func(msg []byte, to netip.AddrPort) error

	mu      sync.Mutex // guards the following
	waiting map[[idLen]byte]try
}

// try is a request that was sent.
type try struct {
	x    *exchange
	sent time.Time
}

// exchange is all tries for one answer.
type exchange struct {
	server  netip.AddrPort
	change  byte // CHANGE-REQUEST; if not 0, the answer may come from anywhere
	tries   int
	ids     [][idLen]byte
	results chan outcome // has room for one
}

type outcome struct {
	answer Result
	err    error
}

// NewClient makes a client that sends with send, which may be called by several goroutines at once and must not keep msg. What
// arrives is to be given to Handle.
func NewClient(send func(msg []byte, to netip.AddrPort) error) *Client {
	return &Client{send: send, waiting: map[[idLen]byte]try{}}
}

// Bind asks a server for the address that this socket has for it. Errors wrap ErrNoAnswer, a *ResponseError, what ctx ended
// with, or what sending failed with.
func (c *Client) Bind(ctx context.Context, server netip.AddrPort) (Result, error) {
	return c.do(ctx, &exchange{server: server, tries: allTries})
}

func (c *Client) do(ctx context.Context, x *exchange) (Result, error) {
	x.server = netip.AddrPortFrom(x.server.Addr().Unmap(), x.server.Port())
	x.results = make(chan outcome, 1)
	defer c.forget(x)
	r := c.exchange(ctx, x)
	if r.err != nil {
		return Result{}, fmt.Errorf("stun %v: %w", x.server, r.err)
	}
	return r.answer, nil
}

// exchange sends until there is an answer.
func (c *Client) exchange(ctx context.Context, x *exchange) outcome {
	wait := firstWait
	timer := time.NewTimer(wait)
	defer timer.Stop()
	failures := 0
	for range x.tries {
		err := c.try(x)
		if err == nil {
			failures = 0
		} else if failures++; failures == 2 || hopeless(err) {
			return outcome{err: err} // once may have been a full queue
		}
		select {
		case r := <-x.results:
			return r
		case <-ctx.Done():
			return x.last(fmt.Errorf("%w after %d tries: %w", ErrNoAnswer, len(x.ids), context.Cause(ctx)))
		case <-timer.C:
		}
		wait *= 2
		timer.Reset(wait)
	}
	return x.last(fmt.Errorf("%w after %d tries", ErrNoAnswer, len(x.ids)))
}

// hopeless reports whether sending fails for good: there is no socket, or no way for that family.
func hopeless(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// last is an answer that came in the same instant as the end, or that end.
func (x *exchange) last(end error) outcome {
	select {
	case r := <-x.results:
		return r
	default:
		return outcome{err: end}
	}
}

// try sends one request.
func (c *Client) try(x *exchange) error {
	var id [idLen]byte
	rand.Read(id[:]) // never fails
	msg := buildRequest(id, x.change)
	c.mu.Lock()
	if len(c.waiting) >= maxWaiting {
		c.mu.Unlock()
		return fmt.Errorf("%d requests are waiting for an answer", maxWaiting)
	}
	c.waiting[id] = try{x, time.Now()}
	x.ids = append(x.ids, id)
	c.mu.Unlock()
	return c.send(msg, x.server)
}

func (c *Client) forget(x *exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range x.ids {
		delete(c.waiting, id)
	}
}

// Handle takes a message that has arrived, from the address it came from. It returns false, and does nothing, if that is not an
// answer to a request of this client's that is still waiting: the transaction id is not one, or the sender is not who was
// asked. A damaged answer counts as none. It never blocks and does not keep msg.
func (c *Client) Handle(msg []byte, from netip.AddrPort) bool {
	now := time.Now()
	if !Is(msg) || msg[0]&0x01 == 0 { // no response
		return false
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	c.mu.Lock()
	t, ok := c.waiting[[idLen]byte(msg[headerLen-idLen:])]
	c.mu.Unlock()
	if !ok || t.x.change == 0 && from != t.x.server {
		return false
	}
	r, ok := parseResponse(msg)
	if !ok {
		return false
	}
	r.answer.From, r.answer.RTT = from, now.Sub(t.sent)
	select {
	case t.x.results <- r:
	default: // an answer to another try was first
	}
	return true
}

// buildRequest makes a Binding request.
func buildRequest(id [idLen]byte, change byte) []byte {
	m := pion.Message{TransactionID: id, Type: pion.BindingRequest}
	m.WriteHeader()
	if change != 0 {
		m.Add(pion.AttrChangeRequest, []byte{0, 0, 0, change})
	}
	_ = pion.Fingerprint.AddTo(&m) // has no way to fail
	return m.Raw
}
