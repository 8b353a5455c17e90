//go:build linux

package lab_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"culvert.dev/culvert/internal/lab"
)

// nameserver is an authoritative server over UDP and TCP. Its records may change while it runs.
type nameserver struct {
	mu sync.Mutex
	// guards the following
	hosts   map[string][]netip.Addr // by name with a final dot
	texts   map[string]string
	queries map[string]int // by name, how often it was asked for
}

func newNameserver(t testing.TB, node *lab.Node, addrs ...string) *nameserver {
	t.Helper()
	s := &nameserver{hosts: map[string][]netip.Addr{}, texts: map[string]string{}, queries: map[string]int{}}
	for _, a := range addrs {
		addr := lab.Port(a, 53)
		serveTCP(t, node, addr, s.serveTCP)
		c := node.ListenUDP(t, addr)
		go s.serveUDP(c)
	}
	return s
}

func (s *nameserver) set(name string, addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[name] = nil
	for _, a := range addrs {
		s.hosts[name] = append(s.hosts[name], netip.MustParseAddr(a))
	}
}

func (s *nameserver) asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queries[name]
}

func (s *nameserver) serveUDP(c *net.UDPConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if answer := s.answer(buf[:n], 512); answer != nil {
			c.WriteToUDPAddrPort(answer, from)
		}
	}
}

func (s *nameserver) serveTCP(c *net.TCPConn) {
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		answer := s.answer(query, 65535)
		c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
	}
}

// answer builds the response to a query, truncated where it is larger than limit.
func (s *nameserver) answer(query []byte, limit int) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	name := strings.ToLower(q.Name.String())
	s.mu.Lock()
	s.queries[name]++
	hosts, text := s.hosts[name], s.texts[name]
	_, known := s.hosts[name]
	s.mu.Unlock()

	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}, Questions: []dnsmessage.Question{q}}
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
	for _, a := range hosts {
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	if text != "" && q.Type == dnsmessage.TypeTXT {
		var parts []string
		for len(text) > 200 {
			parts, text = append(parts, text[:200]), text[200:]
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.TXTResource{TXT: append(parts, text)}})
	} else if text == "" && !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	b, err := m.Pack()
	if err == nil && len(b) > limit {
		m.Truncated, m.Answers = true, nil
		b, err = m.Pack()
	}
	if err != nil {
		return nil
	}
	return b
}
