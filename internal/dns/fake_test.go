package dns

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// fakeUpstream is a resolver on loopback, on the same UDP and TCP port, that answers with whatever handle returns for a
// query: any number of messages, or none.
type fakeUpstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // queries seen
}

type handler func(network string, query dnsmessage.Message) [][]byte

func newUpstream(t testing.TB, handle handler) *fakeUpstream {
	t.Helper()
	var pc net.PacketConn
	var l net.Listener
	for range 20 { // until a port is free for both
		var err error
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if l == nil {
		t.Fatal("no port is free for both UDP and TCP")
	}
	u := &fakeUpstream{addr: pc.LocalAddr().(*net.UDPAddr).AddrPort()}
	done := make(chan struct{}, 2)
	go func() { defer func() { done <- struct{}{} }(); u.serveUDP(pc, handle) }()
	go func() { defer func() { done <- struct{}{} }(); u.serveTCP(l, handle) }()
	t.Cleanup(func() {
		pc.Close()
		l.Close()
		<-done
		<-done
	})
	return u
}

func (u *fakeUpstream) serveUDP(pc net.PacketConn, handle handler) {
	buf := make([]byte, 65536)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		u.udp.Add(1)
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil {
			continue
		}
		for _, a := range handle("udp", q) {
			pc.WriteTo(a, from)
		}
	}
}

func (u *fakeUpstream) serveTCP(l net.Listener, handle handler) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		u.tcp.Add(1)
		raw, err := readMessage(c, 0xffff)
		var q dnsmessage.Message
		if err == nil && q.Unpack(raw) == nil {
			for _, a := range handle("tcp", q) {
				writeMessage(c, a)
			}
		}
		c.Close()
	}
}

// newServer starts a server on loopback, checks at the end that nothing of it is left, and returns its address.
func newServer(t testing.TB, cfg Config, ups ...*fakeUpstream) (*Server, string) {
	t.Helper()
	if cfg.Upstreams == nil {
		var list []netip.AddrPort
		for _, u := range ups {
			list = append(list, u.addr)
		}
		cfg.Upstreams = func() []netip.AddrPort { return list }
	}
	before := runtime.NumGoroutine()
	s := New(cfg)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skipf("the TCP port beside %s is taken: %v", pc.LocalAddr(), err)
	}
	errs := make(chan error, 2)
	go func() { errs <- s.ServeUDP(pc) }()
	go func() { errs <- s.ServeTCP(l) }()
	t.Cleanup(func() {
		s.Close()
		for range 2 {
			if err := <-errs; err != nil {
				t.Errorf("serve ended with %v, want nil after Close", err)
			}
		}
		waitGoroutines(t, before)
	})
	return s, pc.LocalAddr().String()
}

// waitGoroutines fails if the count does not come back to want. Goroutines end a moment after what they waited for.
func waitGoroutines(t testing.TB, want int) {
	t.Helper()
	var n int
	for range 200 {
		if n = runtime.NumGoroutine(); n <= want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%d goroutines are left over:\n%s", n-want, buf[:runtime.Stack(buf, true)])
}

// question builds a query.
func question(name string, typ dnsmessage.Type, edits ...func(*dnsmessage.Message)) dnsmessage.Message {
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	for _, e := range edits {
		e(&q)
	}
	return q
}

// edns adds an OPT record with the given UDP size.
func edns(size int, options ...dnsmessage.Option) func(*dnsmessage.Message) {
	return func(m *dnsmessage.Message) {
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(size, dnsmessage.RCodeSuccess, false)
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{Options: options}})
	}
}

// answerTo builds an answer with the query's ID, question and OPT.
func answerTo(q dnsmessage.Message, records ...dnsmessage.Resource) dnsmessage.Message {
	m := dnsmessage.Message{
		Header:      q.Header,
		Questions:   q.Questions,
		Answers:     records,
		Additionals: q.Additionals,
	}
	m.Response, m.RecursionAvailable = true, true
	return m
}

func record4(name, addr string, ttl uint32) dnsmessage.Resource {
	return resource(name, ttl, &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()})
}

func record6(name, addr string, ttl uint32) dnsmessage.Resource {
	return resource(name, ttl, &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(addr).As16()})
}

func resource(name string, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl},
		Body:   body,
	}
}

// texts returns n TXT records of about 200 bytes.
func texts(name string, n int) (list []dnsmessage.Resource) {
	text := make([]byte, 180)
	for i := range text {
		text[i] = 'x'
	}
	for range n {
		list = append(list, resource(name, 60, &dnsmessage.TXTResource{TXT: []string{string(text)}}))
	}
	return list
}

func pack(t testing.TB, m dnsmessage.Message) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var errNoAnswer = errors.New("no answer")

// askUDP sends raw and waits for one answer.
func askUDP(t testing.TB, to string, raw []byte, wait time.Duration) (dnsmessage.Message, error) {
	t.Helper()
	b, err := rawUDP(t, to, raw, wait)
	if err != nil {
		return dnsmessage.Message{}, err
	}
	return unpack(t, b), nil
}

func rawUDP(t testing.TB, to string, raw []byte, wait time.Duration) ([]byte, error) {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write(raw); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65536)
	n, err := c.Read(buf)
	if err != nil {
		return nil, errNoAnswer
	}
	return buf[:n], nil
}

func mustUDP(t testing.TB, to string, q dnsmessage.Message) dnsmessage.Message {
	t.Helper()
	m, err := askUDP(t, to, pack(t, q), 8*time.Second)
	if err != nil {
		t.Fatalf("query %v: %v", q.Questions, err)
	}
	if m.ID != q.ID || !m.Response {
		t.Fatalf("answer has ID %#x, response %v; want %#x, true", m.ID, m.Response, q.ID)
	}
	return m
}

func dialTCP(t testing.TB, to string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(8 * time.Second))
	return c
}

func mustTCP(t testing.TB, to string, q dnsmessage.Message) dnsmessage.Message {
	t.Helper()
	c := dialTCP(t, to)
	if err := writeMessage(c, pack(t, q)); err != nil {
		t.Fatal(err)
	}
	b, err := readMessage(c, 0xffff)
	if err != nil {
		t.Fatalf("query %v by TCP: %v", q.Questions, err)
	}
	return unpack(t, b)
}

func unpack(t testing.TB, b []byte) (m dnsmessage.Message) {
	t.Helper()
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer % x: %v", b, err)
	}
	return m
}

// addresses returns what the A and AAAA answers hold.
func addresses(m dnsmessage.Message) (list []string) {
	for _, r := range m.Answers {
		for _, a := range addressesOf(r) {
			list = append(list, a.String())
		}
	}
	return list
}

// fixed answers every query with one A record.
func fixed(addr string) handler {
	return func(_ string, q dnsmessage.Message) [][]byte {
		a := answerTo(q, record4(q.Questions[0].Name.String(), addr, 60))
		b, _ := a.Pack()
		return [][]byte{b}
	}
}

func silent(string, dnsmessage.Message) [][]byte { return nil }

func withRCode(rcode dnsmessage.RCode) handler {
	return func(_ string, q dnsmessage.Message) [][]byte {
		a := answerTo(q)
		a.RCode = rcode
		b, _ := a.Pack()
		return [][]byte{b}
	}
}

func setFlag(raw []byte, flag uint16) []byte {
	binary.BigEndian.PutUint16(raw[2:], binary.BigEndian.Uint16(raw[2:])|flag)
	return raw
}

// closedPort returns an address of loopback where nothing listens.
func closedPort(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}
