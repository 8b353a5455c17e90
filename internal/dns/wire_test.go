package dns

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"context"

	"golang.org/x/net/dns/dnsmessage"
)

// Every proper prefix of a message is malformed, wherever the cut is.
func TestEveryTruncationIsMalformed(t *testing.T) {
	m := answerTo(question("example.com.", dnsmessage.TypeA, edns(1232, dnsmessage.Option{Code: 10, Data: []byte("cookie..")})),
		record4("example.com.", "192.0.2.1", 60), resource("example.com.", 60, &dnsmessage.MXResource{MX: dnsmessage.MustNewName("mx.example.com.")}))
	m.Authorities = []dnsmessage.Resource{soa("com.", 60, 60)}
	raw := pack(t, m)
	for n := range raw {
		if _, ok := parse(raw[:n]); ok {
			t.Errorf("the first %d of %d bytes parse", n, len(raw))
		}
	}
	whole, ok := parse(append(bytes.Clone(raw), "trailing"...))
	if !ok || !bytes.Equal(whole.raw, raw) {
		t.Error("bytes behind the message are not cut off")
	}
}

func TestSameQuestion(t *testing.T) {
	base := question("www.Example.com.", dnsmessage.TypeA)
	for _, c := range []struct {
		other dnsmessage.Message
		want  bool
	}{
		{question("WWW.example.COM.", dnsmessage.TypeA), true},
		{question("www.example.org.", dnsmessage.TypeA), false},
		{question("wwwaexample.com.", dnsmessage.TypeA), false},
		{question("www.example.com.", dnsmessage.TypeAAAA), false},
		{question("www.example.co.", dnsmessage.TypeA), false},
		{question("ww\x17.example.com.", dnsmessage.TypeA), false},
	} {
		if got := sameQuestion(parsed(t, base), parsed(t, c.other)); got != c.want {
			t.Errorf("%v: got %v, want %v", c.other.Questions[0], got, c.want)
		}
	}
	// 0x41 and 0x61 in the type are different types.
	if sameQuestion(parsed(t, question("a.", 0x41)), parsed(t, question("a.", 0x61))) {
		t.Error("type 65 equals type 97")
	}
}

func TestFitDropsOPTThatCannotFit(t *testing.T) {
	m := parsed(t, answerTo(question("example.com.", dnsmessage.TypeTXT, edns(1232, dnsmessage.Option{Code: 12, Data: make([]byte, 600)})), texts("example.com.", 3)...))
	b, truncated := fit(m, 512)
	got := unpack(t, b)
	if !truncated || !got.Truncated || len(got.Answers)+len(got.Additionals) != 0 || len(got.Questions) != 1 {
		t.Errorf("got truncated %v, %v", truncated, got)
	}
}

// pipeConn plays an upstream that sends one given datagram, with the ID of the query in front.
type pipeConn struct {
	net.Conn
	answer []byte
	id     [2]byte
	read   bool
}

func (c *pipeConn) Write(b []byte) (int, error) { copy(c.id[:], b); return len(b), nil }
func (c *pipeConn) Close() error                { return nil }
func (c *pipeConn) SetDeadline(time.Time) error { return nil }
func (c *pipeConn) Read(b []byte) (n int, err error) {
	if c.read {
		return 0, net.ErrClosed
	}
	c.read = true
	n = copy(b, c.answer)
	copy(b[:n], c.id[:])
	return n, nil
}

// Any query against any upstream message: no panic, an answer is well formed, fits, and is the query's.
func FuzzAnswer(f *testing.F) {
	q := question("example.com.", dnsmessage.TypeA, edns(1232))
	good := pack(f, answerTo(q, record4("example.com.", "10.0.0.1", 60), record6("example.com.", "2001:db8::1", 60)))
	f.Add(pack(f, q), good)
	f.Add(pack(f, question("example.com.", dnsmessage.TypeA)), setFlag(bytes.Clone(good), flagTC))
	f.Add(pack(f, question("example.com.", typeAXFR)), []byte{})
	f.Add(pack(f, question("example.com.", dnsmessage.TypeTXT)), pack(f, answerTo(question("example.com.", dnsmessage.TypeTXT), texts("example.com.", 9)...)))
	f.Add([]byte{0, 1, 0x28, 0, 0, 1, 0, 0, 0, 0, 0, 0}, good)
	f.Fuzz(func(t *testing.T, query, upstream []byte) {
		for _, tcp := range []bool{false, true} {
			s := New(Config{
				Upstreams: func() []netip.AddrPort { return addrPorts("192.0.2.53") },
				Allow:     publicOnly,
				Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
					if network == "tcp" {
						return nil, net.ErrClosed
					}
					return &pipeConn{answer: upstream}, nil
				},
			})
			for range 2 { // the second time perhaps from the cache
				checkFuzzed(t, query, s.answer(netip.Addr{}, bytes.Clone(query), tcp), tcp)
			}
			s.Close()
		}
	})
}

func checkFuzzed(t *testing.T, query, answer []byte, tcp bool) {
	if answer == nil {
		if len(query) >= headerLen && query[2]&0x80 == 0 {
			t.Fatalf("query % x is not answered", query)
		}
		return
	}
	m, ok := parse(answer)
	if !ok || len(m.raw) != len(answer) {
		t.Fatalf("answer % x is malformed", answer)
	}
	if !m.has(flagQR) || !bytes.Equal(answer[:2], query[:2]) {
		t.Fatalf("answer % x does not belong to query % x", answer, query)
	}
	if p, ok := parse(query); ok && p.hasQuestion() {
		if !m.hasQuestion() || !bytes.Equal(m.question(), p.question()) {
			t.Fatalf("answer % x has not the question of % x", answer, query)
		}
		if limit := p.udpSize(); !tcp && len(answer) > limit {
			t.Fatalf("answer has %d bytes, the client takes %d", len(answer), limit)
		}
	}
	if d := (dnsmessage.Message{}); d.Unpack(answer) == nil {
		for _, r := range append(append(d.Answers, d.Authorities...), d.Additionals...) {
			for _, a := range addressesOf(r) {
				if !publicOnly(netip.Addr{}, a) {
					t.Fatalf("answer % x tells %v", answer, a)
				}
			}
		}
	}
}
