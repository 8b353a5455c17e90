package relay

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers questions for relay.example with one address of each family.
type nameServer struct{ v4, v6 netip.Addr }

// dial is for net.Resolver: one end of a pipe at whose other end the server answers.
func (n nameServer) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		for {
			buf := make([]byte, 2000)
			if _, err := server.Read(buf[:2]); err != nil { // TCP's framing: a pipe is no packet connection
				return
			}
			k, err := server.Read(buf)
			if err != nil {
				return
			}
			answer := n.answer(buf[:k])
			server.Write(append([]byte{byte(len(answer) >> 8), byte(len(answer))}, answer...))
		}
	}()
	return client, nil
}

func (n nameServer) answer(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}
	m.Additionals = nil
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}
	switch q.Type {
	case dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: n.v4.As4()}}}
	case dnsmessage.TypeAAAA:
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AAAAResource{AAAA: n.v6.As16()}}}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// TestBothFamiliesAreRaced has a relay whose name has two addresses, one of which never answers.
func TestBothFamiliesAreRaced(t *testing.T) {
	f := newFakeRelay(t)
	addr := listen(t, nil, f.serve)
	port := netip.MustParseAddrPort(addr).Port()
	for _, dead := range []string{"tcp4", "tcp6"} {
		v6 := netip.MustParseAddr("::1")
		if dead == "tcp4" {
			l, err := net.Listen("tcp6", netip.AddrPortFrom(v6, port).String())
			if err != nil {
				t.Skip("no IPv6 on loopback: ", err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go f.serve(c)
				}
			}()
		}
		server := nameServer{netip.MustParseAddr("127.0.0.1"), v6}
		d := newDialer(t)
		var mu sync.Mutex
		var tried []string
		begin := time.Now()
		d.system = func(nd *net.Dialer) {
			nd.Resolver = &net.Resolver{PreferGo: true, Dial: server.dial}
			nd.Control = nil
			nd.ControlContext = func(ctx context.Context, network, address string, _ syscall.RawConn) error {
				mu.Lock()
				tried = append(tried, network)
				mu.Unlock()
				if network == dead {
					<-ctx.Done() // no answer to SYN
					return ctx.Err()
				}
				return nil
			}
		}
		c, err := d.Dial(t.Context(), Server{URL: "http://relay.example:" + addr[strings.LastIndexByte(addr, ':')+1:]})
		if err != nil {
			t.Errorf("%s does not answer: %v", dead, err)
			continue
		}
		took := time.Since(begin)
		mu.Lock()
		if took > 5*time.Second || len(tried) == 2 && tried[0] == dead && took < familyDelay {
			t.Errorf("%s does not answer: connected after %v, tried %v", dead, took, tried)
		}
		mu.Unlock()
		c.Close()
	}
}
