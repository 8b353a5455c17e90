package node

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// simTUN is the inner end of a tunnel: a host that answers echoes, and sends and counts numbered packets.
type simTUN struct {
	addr   netip.Addr
	out    chan []byte
	closed chan struct{}
	events chan tun.Event
	once   sync.Once
	full   atomic.Uint64 // packets that nobody took

	mu     sync.Mutex // guards the following
	flows  map[uint32]*simFlow
	echoes map[uint32]chan struct{}
	serial uint32
}

func newSimTUN(addr netip.Addr) *simTUN {
	return &simTUN{
		addr: addr, out: make(chan []byte, 1<<12), closed: make(chan struct{}), events: make(chan tun.Event),
		flows: map[uint32]*simFlow{}, echoes: map[uint32]chan struct{}{},
	}
}

// Read implements tun.Device.
func (d *simTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case p := <-d.out:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	}
}

// Write implements tun.Device.
func (d *simTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		d.receive(b[offset:])
	}
	return len(bufs), nil
}

// Close implements tun.Device.
func (d *simTUN) Close() error {
	d.once.Do(func() {
		close(d.closed)
		close(d.events)
	})
	return nil
}

func (d *simTUN) File() *os.File           { return nil }
func (d *simTUN) MTU() (int, error)        { return 1420, nil }
func (d *simTUN) Name() (string, error)    { return "simulated", nil }
func (d *simTUN) Events() <-chan tun.Event { return d.events }
func (d *simTUN) BatchSize() int           { return 1 }

// Packets are IPv4 with a kind for the protocol, and a number of a flow or echo and a serial number behind the header. They are no
// ICMP, which nothing on the way would tell from any other.
const (
	simEcho  = 253
	simReply = 254
	simData  = 255
	simLen   = 28
)

// send sends one.
func (d *simTUN) send(kind byte, to netip.Addr, id, serial uint32) {
	p := make([]byte, simLen)
	p[0], p[8], p[9] = 0x45, 64, kind
	binary.BigEndian.PutUint16(p[2:], simLen)
	copy(p[12:], d.addr.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint32(p[20:], id)
	binary.BigEndian.PutUint32(p[24:], serial)
	select {
	case d.out <- p:
	default:
		d.full.Add(1)
	}
}

func (d *simTUN) receive(p []byte) {
	if len(p) != simLen || netip.AddrFrom4([4]byte(p[16:])) != d.addr {
		return
	}
	from, id, serial := netip.AddrFrom4([4]byte(p[12:])), binary.BigEndian.Uint32(p[20:]), binary.BigEndian.Uint32(p[24:])
	switch p[9] {
	case simEcho:
		d.send(simReply, from, id, serial)
	case simReply:
		d.mu.Lock()
		defer d.mu.Unlock()
		if c := d.echoes[id]; c != nil {
			close(c)
			delete(d.echoes, id)
		}
	case simData:
		d.mu.Lock()
		f := d.flows[id]
		d.mu.Unlock()
		if f != nil {
			f.came(serial)
		}
	}
}

// echo sends an echo and waits for its answer.
func (d *simTUN) echo(ctx context.Context, to netip.Addr) (time.Duration, error) {
	c := make(chan struct{})
	d.mu.Lock()
	d.serial++
	id := d.serial
	d.echoes[id] = c
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.echoes, id)
	}()
	began := time.Now()
	d.send(simEcho, to, id, 0)
	select {
	case <-c:
		return time.Since(began), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-d.closed:
		return 0, errors.New("closed")
	}
}

// simFlow is a flow of numbered packets in one direction.
type simFlow struct {
	mu   sync.Mutex  // guards the following
	sent []time.Time // by number
	got  []uint8     // how often each came
	at   []time.Time // when packets came for the first time, in that order
}

// flowID tells flows apart in the whole process.
var flowID atomic.Uint32

// came notes a packet.
func (f *simFlow) came(serial uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if int(serial) >= len(f.sent) {
		return
	}
	if f.got[serial]++; f.got[serial] == 1 {
		f.at = append(f.at, time.Now())
	}
}

// result is what has become of a flow.
type result struct {
	sent, lost, twice int
	gap               time.Duration // the longest in which nothing came, from the first packet sent until the last one sent
	lostAt            []time.Time   // when they were sent
}

// since returns what has become of the packets sent and received from then on; the gap that lasts at that time counts in full. What
// was sent within the last second may be on its way still, and is left out.
func (f *simFlow) since(then time.Time) (r result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, at := range f.sent {
		switch {
		case at.Before(then), f.got[i] == 0 && time.Since(at) < time.Second:
			continue
		case f.got[i] == 0:
			r.lost++
			r.lostAt = append(r.lostAt, at)
		case f.got[i] > 1:
			r.twice++
		}
		r.sent++
	}
	before := f.sent[0]
	for _, at := range append(slices.Clone(f.at), f.sent[len(f.sent)-1]) {
		if !at.Before(then) {
			r.gap = max(r.gap, at.Sub(before))
		}
		before = later(before, at)
	}
	return r
}

// last is when a packet came last.
func (f *simFlow) last() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.at) == 0 {
		return time.Time{}
	}
	return f.at[len(f.at)-1]
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
