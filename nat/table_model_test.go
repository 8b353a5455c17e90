package nat

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// tableModel says what a Table should do, by looking at everything each time.
type tableModel struct {
	max, perPeer int
	quota        map[uint16]int
	flows        []*tableEntry
	moves        int
}

type tableEntry struct {
	f     *Flow
	state State
	tcp   TCPState
	since int // the move that brought it to its state
	last  int64
}

func (m *tableModel) find(k *packet.Key) (*tableEntry, Dir) {
	for _, e := range m.flows {
		if e.f.Key == *k {
			return e, Original
		}
		if e.f.Reply.V != 0 && e.f.Reply == *k {
			return e, Reply
		}
	}
	return nil, Original
}

func (m *tableModel) of(peer uint16, states ...State) (list []*tableEntry) {
	for _, e := range m.flows {
		if e.f.Key.Peer == peer && slices.Contains(states, e.state) {
			list = append(list, e)
		}
	}
	return list
}

func (m *tableModel) count(peer uint16) int {
	return len(m.of(peer, StateNew, StateAssured, StateClosing))
}

// oldestUnassured is rule 1 of evict.go.
func (m *tableModel) oldestUnassured(peer uint16) *tableEntry {
	for _, st := range []State{StateClosing, StateNew} {
		if l := m.of(peer, st); l != nil {
			return slices.MinFunc(l, func(a, b *tableEntry) int { return cmp.Compare(a.since, b.since) })
		}
	}
	return nil
}

// insert returns who has to go and whether f is entered.
func (m *tableModel) insert(f *Flow, now int64) (gone *tableEntry, ok bool) {
	if e, _ := m.find(&f.Key); e != nil || f.Reply == f.Key {
		return nil, false
	}
	if e, _ := m.find(&f.Reply); e != nil && f.Reply.V != 0 {
		return nil, false
	}
	peer, quota := f.Key.Peer, m.perPeer
	if q := m.quota[peer]; q > 0 {
		quota = q
	}
	switch {
	case m.count(peer) >= quota:
		if gone = m.oldestUnassured(peer); gone == nil {
			return nil, false
		}
	case len(m.flows) >= m.max:
		if gone = m.makeRoom(peer); gone == nil {
			return nil, false
		}
	}
	m.remove(gone)
	m.moves++
	m.flows = append(m.flows, &tableEntry{f: f, since: m.moves, last: now})
	return gone, true
}

// makeRoom is rules 2 to 4.
func (m *tableModel) makeRoom(peer uint16) *tableEntry {
	peers, most := 0, peer
	for i := range tablePeers {
		p := tablePeer(i)
		n := m.count(p)
		if n > m.count(most) {
			most = p
		}
		if n > 0 || p == peer {
			peers++
		}
	}
	if most != peer {
		if e := m.oldestUnassured(most); e != nil {
			return e
		}
		if m.count(peer) < m.max/peers {
			return slices.MinFunc(m.of(most, StateAssured), func(a, b *tableEntry) int { return cmp.Compare(a.last, b.last) })
		}
	}
	return m.oldestUnassured(peer)
}

func (m *tableModel) remove(e *tableEntry) {
	m.flows = slices.DeleteFunc(m.flows, func(x *tableEntry) bool { return x == e })
}

func (m *tableModel) set(e *tableEntry, st State, tcp TCPState) {
	e.tcp = tcp
	if st > e.state {
		m.moves++
		e.state, e.since = st, m.moves
	}
}

func (m *tableModel) due(e *tableEntry) int64 {
	def := Timeouts{}.withDefaults()
	like := &Flow{Key: e.f.Key}
	like.word.Store(uint32(e.state) | uint32(e.tcp)<<wordTCPShift)
	return e.last + int64(def.of(like))
}

// Peers of two shards, so that their ranking matters; the first has half of the traffic.
const tablePeers = 9

func tablePeer(i int) uint16 { return uint16(1 + 8*i) }

// tableTraffic makes one of few tuples, so that they meet again, and a reply tuple: none, the reverse, or that of a translation
// to few ports.
func tableTraffic(a, b uint8) (k, reply packet.Key) {
	peer := 0
	if a < 128 {
		peer = int(a) % tablePeers
	}
	k = key(tablePeer(peer), []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMPv4}[b%3], uint16(b%32), []uint16{53, 80}[a/64%2])
	reply = k.Reverse()
	switch (a ^ b) % 4 {
	case 0:
		return k, packet.Key{}
	case 1:
		reply.Peer = tablePeer(int(b) % tablePeers)
	default:
		reply.Peer, reply.DstPort = PeerUpstream, uint16(a)<<3|uint16(b)&7
	}
	return k, reply
}

// tableRun drives a table and its model.
type tableRun struct {
	*testing.T
	m      *tableModel
	tab    *Table
	now    int64
	ended  []*Flow
	events int // EventNew less EventDestroy

	evictions, refusals int
}

func newTableRun(t *testing.T) *tableRun {
	r := &tableRun{T: t, m: &tableModel{max: 60, perPeer: 35, quota: map[uint16]int{}}}
	r.tab = New(Config{Max: r.m.max, MaxPerPeer: r.m.perPeer, OnEnd: func(f *Flow, why End) {
		r.ended = append(r.ended, f)
		if why == Evicted {
			r.evictions++
		}
	}})
	r.tab.Observe(func(e Event) {
		switch e.Kind {
		case EventNew:
			r.events++
		case EventDestroy:
			r.events--
		}
	})
	return r
}

// step does what three bytes say and compares.
func (r *tableRun) step(op, a, b uint8) {
	r.now += 1 + int64(op>>4)*int64(time.Millisecond)
	r.ended = r.ended[:0]
	want := map[*Flow]bool{}
	gone := func(e *tableEntry) {
		if e != nil {
			want[e.f] = true
			r.m.remove(e)
		}
	}
	k, reply := tableTraffic(a, b)
	switch op % 16 {
	default: // a packet of the original direction
		if e := r.lookup(&k); e != nil {
			r.packet(e, op, a)
			break
		}
		f := &Flow{Key: k, Reply: reply}
		e, ok := r.m.insert(f, r.now)
		gone(e)
		if got := r.tab.Insert(f, r.now); got != ok {
			r.Fatalf("Insert(%v, %v) = %v, want %v", f.Key, f.Reply, got, ok)
		}
		if !ok {
			r.refusals++
		}
	case 9, 10: // of the reply direction
		if e := r.lookup(&reply); e != nil {
			r.packet(e, op, a)
		}
	case 11:
		if e, _ := r.m.find(&k); e != nil && b < 64 {
			r.m.remove(e)
			if !r.tab.Remove(e.f) || r.tab.Remove(e.f) {
				r.Fatal("Remove does not tell the first time from the second")
			}
		}
	case 12:
		if b < 32 {
			peer := tablePeer(int(a) % tablePeers)
			e := r.m.oldestUnassured(peer)
			gone(e)
			if got := r.tab.EvictOldest(peer); got != (e != nil) {
				r.Fatalf("EvictOldest(%d) = %v, want %v", peer, got, e)
			}
		}
	case 13:
		peer, q := tablePeer(int(a)%tablePeers), max(0, int(b)-224)
		r.m.quota[peer] = q
		r.tab.SetQuota(peer, q)
	case 14:
		if b < 4 {
			for _, e := range slices.Clone(r.m.flows) {
				if e.f.Key.SrcPort%4 == uint16(b) {
					gone(e)
				}
			}
			r.tab.Recheck(func(f *Flow) bool { return f.Key.SrcPort%4 != uint16(b) })
		}
	case 15:
		if b < 16 {
			r.now += int64(a) * int64(500*time.Millisecond)
		}
		r.tab.Expire(r.now)
		for _, e := range slices.Clone(r.m.flows) {
			due, dead := r.m.due(e), e.f.Dead()
			if due > r.now && dead || due <= r.now-int64(time.Second) && !dead {
				r.Fatalf("dead=%v at %v, due %v", dead, time.Duration(r.now), time.Duration(due))
			}
			if dead {
				gone(e)
			}
		}
	}
	for _, f := range r.ended {
		if !want[f] {
			r.Fatalf("op %d %d %d: ended %v, want %d others", op, a, b, f.Key, len(want))
		}
	}
	if len(r.ended) != len(want) || r.tab.Len() != len(r.m.flows) || r.events != len(r.m.flows) {
		r.Fatalf("op %d %d %d: %d ended, want %d; %d flows, %d by events, want %d",
			op, a, b, len(r.ended), len(want), r.tab.Len(), r.events, len(r.m.flows))
	}
}

func (r *tableRun) lookup(k *packet.Key) *tableEntry {
	f, d := r.tab.Lookup(k)
	e, wantDir := r.m.find(k)
	if (f == nil) != (e == nil) || e != nil && (e.f != f || d != wantDir) {
		r.Fatalf("Lookup(%v) = %v %v, want %v %v", k, f, d, e, wantDir)
	}
	return e
}

// packet touches a flow and moves it to another state, most often forward.
func (r *tableRun) packet(e *tableEntry, op, a uint8) {
	e.f.Touch(r.now)
	e.last = r.now
	switch {
	case e.f.Key.Proto == packet.ProtoTCP && op&16 != 0:
		tcp := [...]TCPState{TCPSynSent, TCPSynRecv, TCPEstablished, TCPEstablished, TCPEstablished, TCPFinWait, TCPLastAck, TCPSynSent2}[a%8]
		if a == 250 {
			tcp = TCPTimeWait
		}
		r.tab.SetTCP(e.f, tcp)
		if tcp != e.tcp {
			r.m.set(e, tcp.state(), tcp)
		}
	case op&32 != 0:
		st := StateAssured
		if a > 250 {
			st = StateClosing
		}
		r.tab.SetState(e.f, st)
		r.m.set(e, st, e.tcp)
	}
}

// finish compares what is left, and closes the table.
func (r *tableRun) finish() {
	checkTable(r.T, r.tab)
	seen := map[*Flow]bool{}
	r.tab.Each(func(f *Flow) { seen[f] = true })
	for _, e := range r.m.flows {
		left := time.Duration(max(0, r.m.due(e)-r.now))
		if !seen[e.f] || e.f.State() != e.state || e.f.TCP() != e.tcp || r.tab.Left(e.f, r.now) != left {
			r.Errorf("%v: seen=%v %v %v, want %v %v", e.f.Key, seen[e.f], e.f.State(), e.f.TCP(), e.state, e.tcp)
		}
	}
	r.tab.Close()
	checkTable(r.T, r.tab)
	if r.tab.Len() != 0 || r.events != 0 || r.tab.Insert(&Flow{Key: key(1, packet.ProtoUDP, 1, 1)}, r.now) {
		r.Errorf("after Close: %d flows, %d by events, or it takes new ones", r.tab.Len(), r.events)
	}
}

func TestTableAgainstModel(t *testing.T) {
	evictions, refusals := 0, 0
	for seed := range uint64(5) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := newTableRun(t)
		for range 4000 {
			u := rnd.Uint32()
			r.step(uint8(u), uint8(u>>8), uint8(u>>16))
		}
		r.finish()
		evictions, refusals = evictions+r.evictions, refusals+r.refusals
	}
	if evictions < 1000 || refusals < 100 {
		t.Errorf("only %d evictions and %d refusals: the traffic tests little", evictions, refusals)
	}
}

func FuzzTable(f *testing.F) {
	for seed := range uint64(4) {
		rnd, ops := rand.New(rand.NewPCG(seed, 2)), make([]byte, 3*100)
		for i := range ops {
			ops[i] = byte(rnd.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newTableRun(t)
		for ops = ops[:min(len(ops), 3*400)]; len(ops) >= 3; ops = ops[3:] {
			r.step(ops[0], ops[1], ops[2])
		}
		r.finish()
	})
}

// checkTable compares the table's parts with each other. Nobody may be using it.
func checkTable(t *testing.T, tab *Table) {
	t.Helper()
	flows, peers := 0, 0
	for i := range tab.shards {
		s := &tab.shards[i]
		n, timed := 0, 0
		var top uint64
		for peer, p := range s.peers {
			queued := checkPeer(t, tab, peer, p)
			if queued != p.count || p.count == 0 || s.ranking[p.heapAt] != p {
				t.Errorf("peer %d: count %d, %d in queues, place %d", peer, p.count, queued, p.heapAt)
			}
			n += queued
			top = max(top, p.rank())
		}
		for j, f := range s.wheel.slots {
			for ; f != nil; f = f.timer.next {
				if f.slot() != j {
					t.Errorf("a flow in slot %d has slot %d", j, f.slot())
				}
				timed++
			}
		}
		if timed != n || len(s.ranking) != len(s.peers) || s.top.Load() != top {
			t.Errorf("shard %d: %d in queues, %d in the wheel, %d peers, %d ranked, top %x, want %x",
				i, n, timed, len(s.peers), len(s.ranking), s.top.Load(), top)
		}
		flows += n
		peers += len(s.peers)
	}
	each, tuples, counted := 0, 0, 0
	tab.Each(func(f *Flow) {
		each++
		if tuples++; f.Reply.V != 0 {
			tuples++
		}
	})
	for i := range tab.index.stripes {
		counted += tab.index.stripes[i].tuples
	}
	if flows != tab.Len() || peers != int(tab.peers.Load()) || each != flows || counted != tuples {
		t.Errorf("%d flows of %d peers, counted %d of %d; Each gives %d; %d tuples, counted %d",
			flows, peers, tab.Len(), tab.peers.Load(), each, tuples, counted)
	}
}

func checkPeer(t *testing.T, tab *Table, peer uint16, p *peerFlows) (queued int) {
	t.Helper()
	for st := range p.queues {
		for f := p.queues[st].first; f != nil; f = f.queue.next {
			queued++
			if f.State() != State(st) || f.Key.Peer != peer || f.Dead() {
				t.Errorf("%v %v dead=%v in the queue of peer %d for %v", f.Key, f.State(), f.Dead(), peer, State(st))
			}
			if g, d := tab.Lookup(&f.Key); g != f || d != Original {
				t.Errorf("%v is not in the index", f.Key)
			}
			if g, d := tab.Lookup(&f.Reply); f.Reply.V != 0 && (g != f || d != Reply) {
				t.Errorf("%v is not in the index by its reply tuple", f.Key)
			}
		}
	}
	return queued
}
