package packet

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// Defaults of ReassemblerConfig.
const (
	defaultReassemblyBytes   = 16 << 20
	defaultReassemblyCount   = 1024
	defaultReassemblyPerPeer = 128
	defaultReassemblyTimeout = 30 * time.Second // RFC 1122 section 3.3.2 and RFC 8200 section 4.5 allow 60
)

// What a datagram and each of its fragments take beside the bytes, roughly. Counting it keeps a flood of tiny ones in
// bounds.
const (
	datagramCost = 512
	fragmentCost = 64
)

// maxFragments bounds one datagram: 64 KiB at the smallest IPv4 MTU of 68 bytes need 1,365.
const maxFragments = 1400

// ReassemblerConfig bounds a Reassembler. Zero means the default.
type ReassemblerConfig struct {
	MaxBytes     int           // memory of all fragments held; default 16 MiB
	MaxDatagrams int           // incomplete datagrams held; default 1,024
	MaxPerPeer   int           // incomplete datagrams of one peer; default 128
	Timeout      time.Duration // from the first fragment seen to the last; default 30 s
}

// Reassembler puts datagrams together from fragments. It copies what it keeps. At a limit the oldest incomplete datagram
// of the same peer goes first, and that of another only if the peer has none itself. It is safe for concurrent use.
type Reassembler struct {
	cfg ReassemblerConfig

	mu      sync.Mutex // guards the following
	table   map[datagramKey]*list.Element
	byAge   list.List // of *datagram, the oldest first
	perPeer map[uint16]int
	bytes   int
}

// datagramKey names a datagram. IPv6 has no protocol in it: fragments of one datagram may state different ones, and that
// of the first counts (RFC 8200 section 4.5).
type datagramKey struct {
	src, dst [16]byte
	id       uint32
	peer     uint16
	proto    uint8
	v        uint8
}

// datagram is what has arrived of one.
type datagram struct {
	key    datagramKey
	expire time.Time
	header []byte  // of the first fragment, nil before; without the IPv6 fragment header
	parts  []piece // by offset, disjoint
	size   int     // sum of the parts
	total  int     // known from the last fragment, else -1
	cost   int     // share of Reassembler.bytes
	dead   Fault   // why it was discarded; what still arrives of it is refused with this until it expires
}

type piece struct {
	off  int
	data []byte
}

func (p piece) end() int { return p.off + len(p.data) }

// NewReassembler returns an empty one.
func NewReassembler(cfg ReassemblerConfig) *Reassembler {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&cfg.MaxBytes, defaultReassemblyBytes)
	def(&cfg.MaxDatagrams, defaultReassemblyCount)
	def(&cfg.MaxPerPeer, defaultReassemblyPerPeer)
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultReassemblyTimeout
	}
	return &Reassembler{cfg: cfg, table: map[datagramKey]*list.Element{}, perPeer: map[uint16]int{}}
}

// Add takes the fragment p, decoded and with Peer set. When it completes a datagram, Add returns that as a valid packet
// without fragment header, which the caller owns and decodes anew; otherwise nil. An exact duplicate is ignored; any other
// overlap discards the datagram and what still arrives of it (RFC 5722, kept for IPv4 too), with FaultFragmentOverlap, and
// parts that contradict each other do so with FaultBadFragment. FaultFragmentLimit means that p does not fit any limit. A
// packet that is no fragment is returned as it is, uncopied.
func (r *Reassembler) Add(p *Packet, now time.Time) (whole []byte, f Fault) {
	if p.Frag == Whole {
		return p.Buf, FaultNone
	}
	if p.Frag == FirstFrag && !p.FragMore { // RFC 6946: an atomic fragment stands for itself
		d := datagram{header: firstHeader(p), parts: []piece{{0, fragmentData(p)}}, total: len(fragmentData(p))}
		return d.join()
	}
	k := datagramKey{src: p.Src, dst: p.Dst, id: p.FragID, peer: p.Peer, proto: p.Proto, v: p.V}
	if p.V == 6 {
		k.proto = 0
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	r.expireLocked(now)
	d := r.datagramLocked(k, now)
	if d.dead != FaultNone {
		return nil, d.dead
	}
	data := fragmentData(p)
	cost := len(data) + fragmentCost
	if p.Frag == FirstFrag {
		cost += p.L4
	}
	at, fault, duplicate := d.place(piece{p.FragOff, data}, p.FragMore)
	if fault != FaultNone {
		return nil, r.discardLocked(d, fault)
	}
	if duplicate {
		return nil, FaultNone
	}
	if len(d.parts) == maxFragments || !r.makeRoomLocked(d, cost) {
		return nil, r.discardLocked(d, FaultFragmentLimit)
	}
	d.parts = slices.Insert(d.parts, at, piece{p.FragOff, bytes.Clone(data)})
	d.size += len(data)
	d.cost += cost
	r.bytes += cost
	if p.Frag == FirstFrag {
		d.header = firstHeader(p)
	}
	if !p.FragMore {
		d.total = p.FragOff + len(data)
	}
	if d.size != d.total {
		return nil, FaultNone
	}
	r.removeLocked(r.table[k])
	return d.join()
}

// Expire forgets datagrams whose time has passed. Add does so by itself; this is for a node that has gone quiet.
func (r *Reassembler) Expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expireLocked(now)
}

// Held returns how many incomplete datagrams are held, and the memory that they count for.
func (r *Reassembler) Held() (datagrams, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.table), r.bytes
}

func (r *Reassembler) expireLocked(now time.Time) {
	for e := r.byAge.Front(); e != nil && !now.Before(e.Value.(*datagram).expire); e = r.byAge.Front() {
		r.removeLocked(e)
	}
}

// datagramLocked finds the datagram of k or starts one, making room for it.
func (r *Reassembler) datagramLocked(k datagramKey, now time.Time) *datagram {
	if e := r.table[k]; e != nil {
		return e.Value.(*datagram)
	}
	if r.perPeer[k.peer] >= r.cfg.MaxPerPeer || len(r.table) >= r.cfg.MaxDatagrams {
		r.evictLocked(k.peer, nil)
	}
	d := &datagram{key: k, expire: now.Add(r.cfg.Timeout), total: -1, cost: datagramCost}
	r.bytes += d.cost
	r.table[k] = r.byAge.PushBack(d)
	r.perPeer[k.peer]++
	return d
}

// makeRoomLocked evicts others until cost more bytes of d fit. It reports false if d alone is too much.
func (r *Reassembler) makeRoomLocked(d *datagram, cost int) bool {
	for r.bytes+cost > r.cfg.MaxBytes {
		if !r.evictLocked(d.key.peer, d) {
			return false
		}
	}
	return true
}

// evictLocked removes the oldest datagram of peer other than keep, else the oldest of all.
func (r *Reassembler) evictLocked(peer uint16, keep *datagram) bool {
	var victim *list.Element
	for e := r.byAge.Front(); e != nil; e = e.Next() {
		d := e.Value.(*datagram)
		if d == keep {
			continue
		}
		if victim == nil {
			victim = e
		}
		if d.key.peer == peer {
			victim = e
			break
		}
	}
	if victim == nil {
		return false
	}
	r.removeLocked(victim)
	return true
}

func (r *Reassembler) removeLocked(e *list.Element) {
	d := r.byAge.Remove(e).(*datagram)
	delete(r.table, d.key)
	r.bytes -= d.cost
	if r.perPeer[d.key.peer]--; r.perPeer[d.key.peer] == 0 {
		delete(r.perPeer, d.key.peer)
	}
}

// discardLocked frees what d holds but remembers why.
func (r *Reassembler) discardLocked(d *datagram, why Fault) Fault {
	r.bytes -= d.cost - datagramCost
	d.header, d.parts, d.size, d.cost, d.dead = nil, nil, 0, datagramCost, why
	return why
}

// place finds where n belongs among the parts.
func (d *datagram) place(n piece, more bool) (at int, f Fault, duplicate bool) {
	at, _ = slices.BinarySearchFunc(d.parts, n.off, func(p piece, off int) int { return p.off - off })
	if at < len(d.parts) && d.parts[at].off == n.off && bytes.Equal(d.parts[at].data, n.data) {
		if last := n.end() == d.total; more != last {
			return at, FaultNone, true
		}
		return 0, FaultBadFragment, false
	}
	if at > 0 && d.parts[at-1].end() > n.off || at < len(d.parts) && n.end() > d.parts[at].off {
		return 0, FaultFragmentOverlap, false
	}
	if d.total >= 0 && (!more || n.end() > d.total) {
		return 0, FaultBadFragment, false
	}
	if !more && at < len(d.parts) {
		return 0, FaultBadFragment, false // data behind the end
	}
	return at, FaultNone, false
}

// join builds the datagram.
func (d *datagram) join() ([]byte, Fault) {
	n := len(d.header) + d.total
	v4 := d.header[0]>>4 == 4
	if v4 && n > maxDatagram || !v4 && n-header6Len > maxDatagram {
		return nil, FaultBadFragment
	}
	b := append(make([]byte, 0, n), d.header...)
	for _, p := range d.parts {
		b = append(b, p.data...)
	}
	if v4 {
		binary.BigEndian.PutUint16(b[offTotal4:], uint16(n))
		setHeaderSum(b[:len(d.header)])
	} else {
		binary.BigEndian.PutUint16(b[offPayload6:], uint16(n-header6Len))
	}
	return b, FaultNone
}

// fragmentData returns the bytes of p that belong to the datagram's fragmentable part.
func fragmentData(p *Packet) []byte {
	if p.V == 6 && p.Frag == FirstFrag {
		at, _ := fragmentHeader(p.Buf)
		return p.Buf[at+headerFragLen:]
	}
	return p.Buf[p.L4:]
}

// firstHeader returns a copy of the header of the first fragment p as it would stand in front of the whole datagram.
func firstHeader(p *Packet) []byte {
	if p.V == 4 {
		h := bytes.Clone(p.Buf[:p.L4])
		binary.BigEndian.PutUint16(h[offFrag4:], 0)
		return h
	}
	at, nextAt := fragmentHeader(p.Buf)
	h := bytes.Clone(p.Buf[:at])
	h[nextAt] = p.Buf[at]
	return h
}

// fragmentHeader finds the fragment header of an IPv6 fragment that Decode has checked, and the next-header field that
// names it.
func fragmentHeader(b []byte) (at, nextAt int) {
	at, nextAt = header6Len, offNext6
	for next := b[nextAt]; next != extFragment; next = b[nextAt] {
		at, nextAt = at+(int(b[at+1])+1)*8, at
	}
	return at, nextAt
}
