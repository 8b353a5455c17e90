package netstack

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"culvert.dev/culvert/internal/packet"
)

// taps are the peers whose packets go to a function instead of the pipeline: servers in the mesh that the node itself asks
// something. Nothing such a peer sends can become a flow, meet a rule, reach gVisor or be answered.
type taps struct {
	mu  sync.Mutex // held while set is replaced
	set atomic.Pointer[tapSet]
}

// tapSet is never changed, only replaced. A nil one has no taps.
type tapSet struct {
	peers   map[uint16]tap
	sources []tapSource
}

type tap struct {
	fn   func(packet []byte)
	from []netip.Addr
}

// tapSource names the peer that an address belongs to.
type tapSource struct {
	addr [16]byte // as packet.Key has it
	v    uint8
	peer uint16
}

func (t *taps) load() *tapSet { return t.set.Load() }

// owner is the tapped peer that p comes from as its source alone tells, or 0.
func (s *tapSet) owner(p *packet.Packet) uint16 {
	if s == nil {
		return 0
	}
	for i := range s.sources { // very few
		if t := &s.sources[i]; t.addr == p.Src && t.v == p.V {
			return t.peer
		}
	}
	return 0
}

// of is the function that gets the peer's packets, nil if it has none.
func (s *tapSet) of(peer uint16) func(packet []byte) {
	if s == nil {
		return nil
	}
	return s.peers[peer].fn
}

// SetTap gives the packets from a peer to fn, whole and as they came, and to nothing else; nil ends that. Packets are the
// peer's whose source is one of from, or that the policy attributes to it: a peer that the policy does not know is named by
// from alone. Packets that packet.Decode refuses are dropped; checksums and fragments are for fn to judge.
//
// fn runs on WireGuard's goroutine of the peer: it must not block, and must not keep the packet. It may still be called
// for a batch that was under way when SetTap returned.
func (n *Net) SetTap(peer uint16, fn func(packet []byte), from ...netip.Addr) {
	t := &n.taps
	t.mu.Lock()
	defer t.mu.Unlock()
	next := &tapSet{peers: make(map[uint16]tap)}
	if old := t.set.Load(); old != nil {
		maps.Copy(next.peers, old.peers)
	}
	if fn == nil {
		delete(next.peers, peer)
	} else {
		next.peers[peer] = tap{fn, slices.Clone(from)}
	}
	for id, tap := range next.peers {
		for _, a := range tap.from {
			next.sources = append(next.sources, makeTapSource(a, id))
		}
	}
	if len(next.peers) == 0 {
		next = nil
	}
	t.set.Store(next)
}

func makeTapSource(a netip.Addr, peer uint16) tapSource {
	v := uint8(6)
	if a.Is4() {
		v = 4
	}
	return tapSource{a.As16(), v, peer}
}

var (
	errInjectSize = errors.New("larger than the tunnel's MTU")
	errInjectRoom = errors.New("no room in the peer's queue, or the data path is closed")
)

// Inject sends a whole IP packet towards a peer, past the pipeline. The packet is copied. WireGuard's cryptokey routing
// decides by the destination which peer gets it; the number only names the queue, so that the peer may be one that the policy
// does not know. It never waits: an error says that the packet is malformed, above the MTU, or finds no room.
func (n *Net) Inject(peer uint16, b []byte) error {
	var p packet.Packet
	if fault := packet.Decode(&p, b); fault != packet.FaultNone {
		return fmt.Errorf("inject a packet for peer %d: malformed: %s", peer, fault)
	}
	if len(b) > n.cfg.MTU {
		return fmt.Errorf("inject a packet of %d bytes for peer %d: %w", len(b), peer, errInjectSize)
	}
	raw := newRaw(len(b))
	raw.b = append(raw.b, b...)
	if !n.out.tryPush(item{raw: raw, peer: peer}) {
		return fmt.Errorf("inject a packet for peer %d: %w", peer, errInjectRoom)
	}
	return nil
}
