package wgstun

import (
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/traversal/stun"
)

// ResponderConfig says what a Responder is. Without Origin it answers echo only.
type ResponderConfig struct {
	Addrs []netip.Addr // that it answers at; none: ServerV4 and ServerV6
	MTU   int          // of the tunnel, which also bounds echo; 0: 1420. At least 1280

	// Rate is how many answers per second one client gets, by its inner address; 0: 100, negative: no limit. Twice as many may come
	// at once.
	Rate int

	// Origin tells the outer source of the datagram that brought a packet, which is exactly the slice that WireGuard wrote
	// (tunnel.Origin). Where it does not know, the request is not answered.
	Origin func(packet []byte) (netip.AddrPort, bool)

	Logger *slog.Logger // nil: discard
}

const (
	defaultMTU = 1420
	minMTU     = 1280 // RFC 8200 section 5
	answerTTL  = 64
)

// batchSize is how many packets WireGuard exchanges with the Responder at once.
const batchSize = 128

// Responder is the tun.Device of a WG-STUN server. A packet that WireGuard writes is answered or forgotten: nothing else can
// come of it. Answers wait in a queue of fixed size for WireGuard's reader; an answer goes to the source of its request, which
// WireGuard has checked to be the sender's, and from the address that was asked.
type Responder struct {
	addrs  []ownAddr
	mtu    int
	origin func(packet []byte) (netip.AddrPort, bool)
	log    *slog.Logger
	queue  queue
	limit  limiter
	start  time.Time
	works  sync.Pool // *work
	events chan tun.Event
	close  sync.Once

	counters [numOutcomes]atomic.Uint64
	ipid     atomic.Uint32
	mute     atomic.Bool // it has been said that no origin is known
}

var _ tun.Device = (*Responder)(nil)

// work is what one call of Write works with.
type work struct {
	p      packet.Packet
	now    time.Duration
	answer [maxAnswer]byte
}

// maxAnswer has room for the IPv6 and UDP headers and any answer to a STUN request.
const maxAnswer = 48 + stun.MaxAnswerLen

// ownAddr is an address as packet.Key has it.
type ownAddr struct {
	b [16]byte
	v uint8
}

// NewResponder makes a Responder. It has no goroutine; Close ends a Read that waits.
func NewResponder(cfg ResponderConfig) *Responder {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Origin == nil {
		cfg.Origin = func([]byte) (netip.AddrPort, bool) { return netip.AddrPort{}, false }
	}
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	if len(cfg.Addrs) == 0 {
		cfg.Addrs = []netip.Addr{ServerV4, ServerV6}
	}
	r := &Responder{mtu: max(cfg.MTU, minMTU), origin: cfg.Origin, log: cfg.Logger, events: make(chan tun.Event)}
	for _, a := range cfg.Addrs {
		a = a.Unmap()
		v := uint8(6)
		if a.Is4() {
			v = 4
		}
		r.addrs = append(r.addrs, ownAddr{a.As16(), v})
	}
	r.start = time.Now()
	r.limit.init(cfg.Rate)
	r.queue.init(r.mtu)
	r.works.New = func() any { return new(work) }
	return r
}

// Write implements tun.Device: packets of one client, decrypted. The buffers are WireGuard's again when it returns. It may be
// called for several clients at once.
func (r *Responder) Write(bufs [][]byte, offset int) (int, error) {
	w := r.works.Get().(*work)
	w.now = time.Since(r.start)
	for _, buf := range bufs {
		r.counters[r.take(w, buf[offset:])].Add(1)
	}
	w.p.Buf = nil
	r.works.Put(w)
	return len(bufs), nil
}

// take answers raw, if it is something to answer.
func (r *Responder) take(w *work, raw []byte) outcome {
	p := &w.p
	if len(raw) > r.mtu {
		return tooLong
	}
	if packet.Decode(p, raw) != packet.FaultNone {
		return malformed
	}
	switch {
	case p.Frag != packet.Whole:
		return fragment
	case !p.Plain:
		return options
	case !r.owns(p.Dst, p.V):
		return otherAddress
	case r.owns(p.Src, p.V) || !isHost(p.SrcAddr()):
		return badSource
	case !r.limit.take(&p.Src, w.now):
		return rateLimit
	}
	switch p.Proto {
	case packet.ProtoUDP:
		return r.takeUDP(w, raw)
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		return r.takeICMP(p)
	}
	return otherProtocol
}

// takeUDP answers a STUN Binding request.
func (r *Responder) takeUDP(w *work, raw []byte) outcome {
	p := &w.p
	switch {
	case p.DstPort != Port || p.SrcPort == 0:
		return otherPort
	case !p.ChecksumOK():
		return badChecksum
	}
	from, ok := r.origin(raw)
	if !ok {
		if !r.mute.Swap(true) {
			r.log.Warn("a WG-STUN request came without its outer source, and is not answered: it may have come by a relay")
		}
		return noOrigin
	}
	hdr := packet.MakeUDPHeader(p.DstAddrPort(), p.SrcAddrPort())
	msg, ok := stun.Answer(w.answer[hdr.Len():hdr.Len()], p.Buf[p.Data:], from)
	if !ok {
		return notSTUN
	}
	answer := w.answer[:hdr.Len()+len(msg)]
	hdr.Put(answer, len(msg), answerTTL, uint16(r.ipid.Add(1)))
	if !r.queue.push(answer) {
		return queueFull
	}
	return answeredSTUN
}

// takeICMP answers an echo request. The reply is as long as the request, and built in its place.
func (r *Responder) takeICMP(p *packet.Packet) outcome {
	request := uint8(8) // RFC 792
	if p.V == 6 {
		request = 128 // RFC 4443 section 4.1
	}
	switch {
	case p.ICMPType != request || p.ICMPCode != 0:
		return otherICMP
	case !p.ChecksumOK():
		return badChecksum
	}
	packet.EchoReplyInPlace(p.Buf, p)
	if !r.queue.push(p.Buf) {
		return queueFull
	}
	return answeredEcho
}

func (r *Responder) owns(a [16]byte, v uint8) bool {
	return slices.Contains(r.addrs, ownAddr{a, v})
}

// isHost reports whether a can be the address of a single host.
func isHost(a netip.Addr) bool {
	if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return false
	}
	return !a.Is4() || a.As4()[0] != 0 && a.As4()[0] < 240
}

// Read implements tun.Device: it fills in answers, and waits for the first.
func (r *Responder) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := r.queue.pop(bufs, sizes, offset)
	if n == 0 {
		return 0, os.ErrClosed
	}
	return n, nil
}

// Close implements tun.Device. Answers that wait are dropped.
func (r *Responder) Close() error {
	r.close.Do(func() {
		r.queue.close()
		close(r.events)
	})
	return nil
}

// MTU implements tun.Device.
func (r *Responder) MTU() (int, error) { return r.mtu, nil }

// Name implements tun.Device.
func (r *Responder) Name() (string, error) { return "wg-stun", nil }

// File implements tun.Device; there is none.
func (r *Responder) File() *os.File { return nil }

// Events implements tun.Device. Only its closing is of interest.
func (r *Responder) Events() <-chan tun.Event { return r.events }

// BatchSize implements tun.Device.
func (r *Responder) BatchSize() int { return batchSize }
