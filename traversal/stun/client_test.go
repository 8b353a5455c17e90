package stun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	pion "github.com/pion/stun/v3"
)

var clientServer = ap("192.0.2.1:3478")

// scripted is a Client whose messages a function gets, with their number from 0 on.
func scripted(fn func(c *Client, n int, msg []byte)) *Client {
	var c *Client
	var mu sync.Mutex
	n := 0
	c = NewClient(func(msg []byte, to netip.AddrPort) error {
		mu.Lock()
		defer mu.Unlock()
		fn(c, n, append([]byte(nil), msg...))
		n++
		return nil
	})
	return c
}

// respondTo makes a server's answer.
func respondTo(msg []byte, mapped string) []byte {
	b, _ := Answer(nil, msg, ap(mapped))
	return b
}

func TestBindSendsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		ids := map[string]bool{}
		c := scripted(func(c *Client, n int, msg []byte) {
			at = append(at, time.Since(start))
			ids[string(msg[8:20])] = true
			if m := decode(t, msg); m.Type != pion.BindingRequest || pion.Fingerprint.Check(m) != nil || len(msg) != 28 {
				t.Errorf("sent %v", m)
			}
		})
		_, err := c.Bind(t.Context(), clientServer)
		if !errors.Is(err, ErrNoAnswer) || err.Error() != "stun 192.0.2.1:3478: no answer after 6 tries" {
			t.Errorf("got %v", err)
		}
		want := []time.Duration{0, 100, 300, 700, 1500, 3100}
		for i := range want {
			want[i] *= time.Millisecond
			if i >= len(at) || at[i] != want[i] {
				t.Fatalf("sent at %v, want %v", at, want)
			}
		}
		if took := time.Since(start); took != 6300*time.Millisecond || len(at) != len(want) {
			t.Errorf("sent at %v, gave up after %v", at, took)
		}
		if len(ids) != len(want) {
			t.Errorf("%d transaction ids of %d tries", len(ids), len(want))
		}
		if len(c.waiting) != 0 {
			t.Errorf("%d transactions are left", len(c.waiting))
		}
	})
}

// TestRTTIsOfTheTryAnswered: whichever try it was, and however late.
func TestRTTIsOfTheTryAnswered(t *testing.T) {
	for lost := range 6 {
		for _, delay := range []time.Duration{10 * time.Millisecond, 60 * time.Millisecond, 2 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				var waiting sync.WaitGroup
				c := scripted(func(c *Client, n int, msg []byte) {
					if n < lost {
						return
					}
					waiting.Go(func() {
						time.Sleep(delay)
						c.Handle(respondTo(msg, "203.0.113.5:1"), clientServer)
					})
				})
				r, err := c.Bind(t.Context(), clientServer)
				if err != nil || r.RTT != delay {
					t.Errorf("%d lost, delay %v: got %v %v", lost, delay, r.RTT, err)
				}
				waiting.Wait()
			})
		}
	}
}

func TestBindGivesWhatTheServerSays(t *testing.T) {
	c := scripted(func(c *Client, n int, msg []byte) {
		m := decode(t, msg)
		answer := pion.MustBuild(m, pion.BindingSuccess, &pion.XORMappedAddress{IP: net.ParseIP("2001:db8::5"), Port: 4711},
			&pion.OtherAddress{IP: net.IP{192, 0, 2, 2}, Port: 3479}, &pion.ResponseOrigin{IP: net.IP{192, 0, 2, 1}, Port: 3478},
			pion.NewSoftware("a\x1b[31mserver\n"), pion.Fingerprint)
		if !c.Handle(answer.Raw, clientServer) {
			t.Error("not handled")
		}
	})
	r, err := c.Bind(t.Context(), netip.AddrPortFrom(netip.AddrFrom16(clientServer.Addr().As16()), clientServer.Port()))
	if err != nil {
		t.Fatal(err)
	}
	r.RTT = 0
	if want := (Result{ap("[2001:db8::5]:4711"), clientServer, ap("192.0.2.2:3479"), clientServer, 0, "a[31mserver"}); r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
}

// TestWhatIsNoAnswer: a message that is not one leaves the request waiting for the right one.
func TestWhatIsNoAnswer(t *testing.T) {
	answer := func(req []byte) []byte { return respondTo(req, "203.0.113.9:9") }
	with := func(set ...pion.Setter) func([]byte) []byte {
		return func(req []byte) []byte { return pion.MustBuild(append([]pion.Setter{decode(t, req)}, set...)...).Raw }
	}
	mapped := func(port int, ip ...byte) pion.Setter { return &pion.XORMappedAddress{IP: ip, Port: port} }
	const right = "192.0.2.1:3478"
	for name, c := range map[string]struct {
		from string
		msg  func(req []byte) []byte
	}{
		"from another port":          {"192.0.2.1:3479", answer},
		"from another address":       {"192.0.2.2:3478", answer},
		"to another transaction":     {right, func(req []byte) []byte { return answer(build(t)) }},
		"the request itself":         {right, func(req []byte) []byte { return req }},
		"an indication":              {right, func(req []byte) []byte { return typed(req, 0x0011) }},
		"another method":             {right, func(req []byte) []byte { return typed(answer(req), 0x0103) }},
		"without cookie":             {right, func(req []byte) []byte { return classic(answer(req)) }},
		"damaged":                    {right, func(req []byte) []byte { return damaged(answer(req))[29] }},
		"without an address":         {right, with(pion.BindingSuccess)},
		"with port 0":                {right, with(pion.BindingSuccess, mapped(0, 203, 0, 113, 5))},
		"with a multicast address":   {right, with(pion.BindingSuccess, mapped(9, 224, 0, 0, 5))},
		"with half an address":       {right, with(pion.BindingSuccess, attr(0x20, 0, 1, 2, 3, 4, 5))},
		"with an address too short":  {right, with(pion.BindingSuccess, attr(1, 0, 2, 2, 3, 4, 5, 6, 7))},
		"an error without code":      {right, with(pion.BindingError)},
		"FINGERPRINT not at the end": {right, with(pion.BindingSuccess, pion.Fingerprint, mapped(9, 203, 0, 113, 5))},
	} {
		client := scripted(func(c2 *Client, n int, req []byte) {
			if c2.Handle(c.msg(req), ap(c.from)) {
				t.Errorf("%s: handled", name)
			}
			if !c2.Handle(respondTo(req, "203.0.113.5:5"), clientServer) {
				t.Errorf("%s: and then the answer was not", name)
			}
		})
		if r, err := client.Bind(t.Context(), clientServer); err != nil || r.Mapped != ap("203.0.113.5:5") {
			t.Errorf("%s: got %+v %v", name, r, err)
		}
	}
}

func TestOldServersAndErrors(t *testing.T) {
	xor := &pion.XORMappedAddress{IP: net.IP{203, 0, 113, 5}, Port: 9}
	old := &pion.MappedAddress{IP: net.IP{203, 0, 113, 5}, Port: 9}
	internal := &pion.MappedAddress{IP: net.IP{10, 0, 0, 1}, Port: 1}
	draft := attr(0x8020, 0, 1, 0x21, 0x1b, 0xea, 0x12, 0xd5, 0x47) // XOR-MAPPED-ADDRESS before it was a standard
	changed := attr(pion.AttrChangedAddress, 0, 1, 0, 9, 1, 2, 3, 4)
	for name, c := range map[string]struct {
		set []pion.Setter
		err string // "": mapped is 203.0.113.5:9
	}{
		"MAPPED-ADDRESS alone":         {[]pion.Setter{pion.BindingSuccess, old}, ""},
		"what RFC 3489 and drafts had": {[]pion.Setter{pion.BindingSuccess, draft, changed}, ""},
		"error":                        {[]pion.Setter{pion.BindingError, pion.CodeTryAlternate}, "error 300"},
		"what must be understood":      {[]pion.Setter{pion.BindingSuccess, attr(0x7777), xor}, "not understood"},
		"what need not, is ignored":    {[]pion.Setter{pion.BindingSuccess, attr(0xc057), xor}, ""},
		"XOR-MAPPED-ADDRESS counts":    {[]pion.Setter{pion.BindingSuccess, internal, xor}, ""},
	} {
		client := scripted(func(c2 *Client, n int, req []byte) {
			c2.Handle(pion.MustBuild(append([]pion.Setter{decode(t, req)}, c.set...)...).Raw, clientServer)
		})
		r, err := client.Bind(t.Context(), clientServer)
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) || err == nil && r.Mapped != ap("203.0.113.5:9") {
			t.Errorf("%s: got %+v %v", name, r, err)
		}
		var re *ResponseError
		if name == "error" && (!errors.As(err, &re) || re.Code != 300) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAnswersFromElsewhereOnlyWhereAskedFor(t *testing.T) {
	c := scripted(func(c *Client, n int, req []byte) {
		if m := decode(t, req); !m.Contains(pion.AttrChangeRequest) {
			t.Errorf("sent %v", m)
		}
		answer, _ := Answer(nil, pion.MustBuild(decode(t, req), pion.BindingRequest).Raw, ap("203.0.113.5:5"))
		if !c.Handle(answer, ap("192.0.2.2:3479")) {
			t.Error("not handled")
		}
	})
	r, err := c.do(t.Context(), &exchange{server: clientServer, change: changeAddr | changePort, tries: 1})
	if err != nil || r.From != ap("192.0.2.2:3479") {
		t.Errorf("got %+v %v", r, err)
	}
}

func TestBindEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(func([]byte, netip.AddrPort) error { return nil })
		ctx, cancel := context.WithTimeout(t.Context(), 350*time.Millisecond)
		defer cancel()
		_, err := c.Bind(ctx, clientServer)
		if !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "after 3 tries") {
			t.Errorf("got %v", err)
		}
		if len(c.waiting) != 0 {
			t.Errorf("%d transactions are left", len(c.waiting))
		}
	})
}

func TestSendingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("network is unreachable")
		n := 0
		c := NewClient(func([]byte, netip.AddrPort) error { n++; return broken })
		if _, err := c.Bind(t.Context(), clientServer); !errors.Is(err, broken) || n != 2 {
			t.Errorf("got %v after %d tries", err, n)
		}
		n = 0
		c = NewClient(func([]byte, netip.AddrPort) error { n++; return net.ErrClosed })
		if _, err := c.Bind(t.Context(), clientServer); !errors.Is(err, net.ErrClosed) || n != 1 {
			t.Errorf("got %v after %d tries", err, n)
		}
		// A full queue now and then is nothing but a loss.
		c = nil
		n = 0
		c = NewClient(func(msg []byte, _ netip.AddrPort) error {
			if n++; n%2 == 1 {
				return broken
			}
			if n == 4 {
				c.Handle(respondTo(msg, "203.0.113.5:5"), clientServer)
			}
			return nil
		})
		if _, err := c.Bind(t.Context(), clientServer); err != nil || n != 4 {
			t.Errorf("got %v after %d tries", err, n)
		}
	})
}

func TestTransactionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(func([]byte, netip.AddrPort) error { return nil })
		var work sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for range maxWaiting + 10 {
			work.Go(func() {
				_, err := c.Bind(t.Context(), clientServer)
				mu.Lock()
				defer mu.Unlock()
				if err == nil || !errors.Is(err, ErrNoAnswer) {
					refused++
				}
			})
		}
		synctest.Wait()
		if len(c.waiting) != maxWaiting {
			t.Errorf("%d are waiting", len(c.waiting))
		}
		work.Wait()
		if refused < 10 || len(c.waiting) != 0 {
			t.Errorf("%d were refused, %d are left", refused, len(c.waiting))
		}
	})
}

// TestManyAtOnce: answers find their own request.
func TestManyAtOnce(t *testing.T) {
	var c *Client
	c = NewClient(func(msg []byte, to netip.AddrPort) error {
		b, _ := Answer(nil, msg, netip.AddrPortFrom(to.Addr(), to.Port()+1))
		go c.Handle(b, to)
		return nil
	})
	var work sync.WaitGroup
	for i := range 500 {
		work.Go(func() {
			to := netip.AddrPortFrom(clientServer.Addr(), uint16(1000+i))
			r, err := c.Bind(t.Context(), to)
			if err != nil || r.Mapped.Port() != to.Port()+1 || r.From != to {
				t.Errorf("%v: got %+v %v", to, r, err)
			}
		})
	}
	work.Wait()
}

// TestNoWay: where there is no way for a family, or no socket, nobody waits.
func TestNoWay(t *testing.T) {
	for _, reason := range []error{syscall.ENETUNREACH, syscall.EAFNOSUPPORT, net.ErrClosed} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			c := NewClient(func([]byte, netip.AddrPort) error { return fmt.Errorf("send: %w", reason) })
			if _, err := c.Bind(t.Context(), server); !errors.Is(err, reason) || time.Since(began) != 0 {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		})
	}
}
