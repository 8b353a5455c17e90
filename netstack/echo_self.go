package netstack

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// selfEchoes are the echo requests that the node itself has sent and that nobody has answered yet. The packet path asks n alone
// while there are none.
type selfEchoes struct {
	n atomic.Int32 // of waiting

	mu      sync.Mutex // guards the following
	next    uint16     // identifier; each request has one of its own, since the quote in an ICMP error is read no further
	waiting map[selfEchoKey]*selfEcho
}

type selfEchoKey struct {
	to [16]byte // as packet.Key has it
	v  uint8
	id uint16
}

type selfEcho struct {
	peer uint16
	end  chan selfEchoEnd // room for one; only who takes the entry out of the map may send
}

type selfEchoEnd struct {
	at  time.Time
	err error
}

const (
	maxSelfEchoes  = 1024
	selfEchoData   = 56 // bytes of payload, as ping(8) has them
	selfEchoHops   = 64
	selfEchoHeader = header6 + icmpHeader // the longer one
)

// Errors of Ping, beside those of its context and ICMPError. ErrNoPeer is also one of DialTCP and of writing to a PacketConn.
var (
	ErrNoPeer      = errors.New("it is in no peer's AllowedIPs")
	errNoSelf      = errors.New("this node has no mesh address of that family")
	errEchoLimit   = errors.New("too many echo requests are unanswered already")
	errEchoNoRoom  = errors.New("no room in the peer's queue")
	errDataPathEnd = errors.New("the data path is closed")
)

// ICMPError is what ended an echo or a connection attempt, or met a datagram: a router, or the peer itself, said that what was sent
// cannot be delivered.
type ICMPError struct {
	From       netip.Addr
	Type, Code uint8 // of ICMP if From is IPv4, else of ICMPv6
}

func (e *ICMPError) Error() string { return fmt.Sprintf("%s says: %s", e.From, e.reason()) }

func (e *ICMPError) reason() string {
	if e.From.Is4() {
		switch {
		case e.Type == icmp4TimeExceeded:
			return "time to live exceeded"
		case e.Type == icmp4Unreachable && e.Code == 0:
			return "network unreachable"
		case e.Type == icmp4Unreachable && e.Code == 1:
			return "host unreachable"
		case e.Type == icmp4Unreachable && e.Code == 3:
			return "port unreachable"
		case e.Type == icmp4Unreachable && e.Code == icmp4FragNeeded:
			return "packet too big"
		case e.Type == icmp4Unreachable && (e.Code == 9 || e.Code == 10 || e.Code == 13): // RFC 1812 section 5.2.7.1
			return "prohibited by its policy"
		}
		return fmt.Sprintf("ICMP type %d code %d", e.Type, e.Code)
	}
	switch {
	case e.Type == icmp6TimeExceeded:
		return "hop limit exceeded"
	case e.Type == icmp6TooBig:
		return "packet too big"
	case e.Type == icmp6Unreachable && e.Code == 0:
		return "no route"
	case e.Type == icmp6Unreachable && (e.Code == 1 || e.Code == 5 || e.Code == 6): // RFC 4443 section 3.1
		return "prohibited by its policy"
	case e.Type == icmp6Unreachable && e.Code == 3:
		return "host unreachable"
	case e.Type == icmp6Unreachable && e.Code == 4:
		return "port unreachable"
	}
	return fmt.Sprintf("ICMPv6 type %d code %d", e.Type, e.Code)
}

// Unwrap returns what a kernel makes of the message (a syscall.Errno).
func (e *ICMPError) Unwrap() error {
	if e.From.Is4() {
		return errnoOfICMP4(e.Type, e.Code)
	}
	return errnoOfICMP6(e.Type, e.Code)
}

const icmp6TimeExceeded = 3

// Ping sends an echo request from the node's own mesh address to an address of a peer, through the tunnel, and waits for the
// reply. The peer is the one whose AllowedIPs hold the address; no rule is asked. The error is ErrNoPeer, the context's, an
// *ICMPError, or says that there is no room. Any number may run at once, up to a bound.
func (n *Net) Ping(ctx context.Context, to netip.Addr) (rtt time.Duration, err error) {
	to = to.Unmap()
	rtt, err = n.echo(ctx, to)
	if err != nil {
		return 0, fmt.Errorf("echo to %s: %w", to, err)
	}
	return rtt, nil
}

func (n *Net) echo(ctx context.Context, to netip.Addr) (time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	peer := n.policy.Load().PeerOf(to)
	if peer == 0 {
		return 0, ErrNoPeer
	}
	v, request := uint8(6), uint8(icmp6Echo)
	if to.Is4() {
		v, request = 4, icmp4Echo
	}
	from := n.self.of(v)
	if !from.IsValid() || from == dummyV4 {
		return 0, errNoSelf
	}
	e := &selfEcho{peer: peer, end: make(chan selfEchoEnd, 1)}
	k, ok := n.echoes.add(e, selfEchoKey{to: to.As16(), v: v})
	if !ok {
		return 0, errEchoLimit
	}
	defer n.echoes.remove(k)
	sent := time.Now()
	if !n.out.tryPush(item{raw: echoRequest(from, to, request, k.id), peer: peer}) {
		if n.ctx.Err() != nil {
			return 0, errDataPathEnd
		}
		return 0, errEchoNoRoom
	}
	select {
	case end := <-e.end:
		return end.at.Sub(sent), end.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-n.ctx.Done():
		return 0, errDataPathEnd
	}
}

func echoRequest(from, to netip.Addr, typ uint8, id uint16) *rawPacket {
	raw := newRaw(selfEchoHeader + selfEchoData)
	b := raw.b[:selfEchoHeader+selfEchoData]
	hlen := header6 + icmpHeader
	if to.Is4() {
		hlen = header4 + icmpHeader
	}
	for i := range selfEchoData {
		b[hlen+i] = byte(i)
	}
	const sequence = 1
	raw.b = b[:packet.PutICMPEcho(b, from, to, typ, id, sequence, selfEchoData, selfEchoHops, 0)]
	return raw
}

// add gives e an identifier and enters it; false if there are too many.
func (s *selfEchoes) add(e *selfEcho, k selfEchoKey) (selfEchoKey, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		s.waiting = make(map[selfEchoKey]*selfEcho)
		var b [2]byte
		rand.Read(b[:])
		s.next = binary.BigEndian.Uint16(b[:])
	}
	if len(s.waiting) >= maxSelfEchoes {
		return k, false
	}
	for { // ends, since far fewer wait than there are identifiers
		s.next++
		k.id = s.next
		if s.waiting[k] == nil {
			break
		}
	}
	s.waiting[k] = e
	s.n.Add(1)
	return k, true
}

// remove forgets a request, answered or not.
func (s *selfEchoes) remove(k selfEchoKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[k] != nil {
		delete(s.waiting, k)
		s.n.Add(-1)
	}
}

// ends reports whether p, whose checksum is right and whose peer is known, answers a request of the node's own: it is then
// dealt with.
func (s *selfEchoes) ends(p *packet.Packet) bool {
	if p.Proto != packet.ProtoICMPv4 && p.Proto != packet.ProtoICMPv6 {
		return false
	}
	var err error
	k := selfEchoKey{to: p.Src, v: p.V, id: p.DstPort}
	if isICMPError(p) {
		q, ok := packet.Quoted(p)
		if !ok {
			return false
		}
		k = selfEchoKey{to: q.Dst, v: q.V, id: q.SrcPort}
		err = &ICMPError{From: p.SrcAddr(), Type: p.ICMPType, Code: p.ICMPCode}
	} else if !isEchoReply(p) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.waiting[k]
	if e == nil || e.peer != p.Peer {
		return false
	}
	delete(s.waiting, k)
	s.n.Add(-1)
	e.end <- selfEchoEnd{time.Now(), err}
	return true
}

func isEchoReply(p *packet.Packet) bool {
	return p.Proto == packet.ProtoICMPv4 && p.ICMPType == 0 || p.Proto == packet.ProtoICMPv6 && p.ICMPType == icmp6EchoReply
}
