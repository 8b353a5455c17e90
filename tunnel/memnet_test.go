package tunnel

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
)

var discard = slog.New(slog.DiscardHandler)

func newBufs(n, size int) [][]byte {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	return bufs
}

// memNet carries datagrams between binds of one process. It works in virtual time.
type memNet struct {
	mu      sync.Mutex
	latency time.Duration
	lose    func(from, to netip.AddrPort, msg []byte) bool
	binds   map[netip.AddrPort]*memBind
}

func newMemNet(latency time.Duration) *memNet {
	return &memNet{latency: latency, binds: map[netip.AddrPort]*memBind{}}
}

type memDatagram struct {
	from netip.AddrPort
	msg  []byte
}

// memBind is a conn.Bind at a fixed address of a memNet.
type memBind struct {
	net    *memNet
	addr   netip.AddrPort
	inbox  chan memDatagram
	mu     sync.Mutex
	closed chan struct{}
}

func (n *memNet) bind(addr string) *memBind {
	return &memBind{net: n, addr: netip.MustParseAddrPort(addr), inbox: make(chan memDatagram, 1024)}
}

// setLoss replaces the function that says which datagrams are lost.
func (n *memNet) setLoss(lose func(from, to netip.AddrPort, msg []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lose = lose
}

// move gives b another address.
func (n *memNet) move(b *memBind, addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.binds, b.addr)
	b.addr = netip.MustParseAddrPort(addr)
	n.binds[b.addr] = b
}

func (b *memBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	closed := make(chan struct{})
	b.closed = closed
	b.net.mu.Lock()
	b.net.binds[b.addr] = b
	b.net.mu.Unlock()
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case d := <-b.inbox:
			sizes[0] = copy(bufs[0], d.msg)
			eps[0] = memEndpoint{d.from}
			return 1, nil
		}
	}}, b.addr.Port(), nil
}

func (b *memBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
		b.net.mu.Lock()
		if b.net.binds[b.addr] == b {
			delete(b.net.binds, b.addr)
		}
		b.net.mu.Unlock()
	}
	return nil
}

func (b *memBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	to := ep.(memEndpoint).AddrPort
	b.net.mu.Lock()
	from, latency, lose := b.addr, b.net.latency, b.net.lose
	b.net.mu.Unlock()
	for _, buf := range bufs {
		if lose != nil && lose(from, to, buf) {
			continue
		}
		d := memDatagram{from, append([]byte(nil), buf...)}
		time.AfterFunc(latency, func() {
			b.net.mu.Lock()
			dst := b.net.binds[to]
			b.net.mu.Unlock()
			if dst != nil {
				select {
				case dst.inbox <- d:
				default:
				}
			}
		})
	}
	return nil
}

func (b *memBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return memEndpoint{a}, err
}

func (b *memBind) SetMark(uint32) error { return nil }
func (b *memBind) BatchSize() int       { return 1 }

type memEndpoint struct{ netip.AddrPort }

func (e memEndpoint) ClearSrc()           {}
func (e memEndpoint) SrcToString() string { return "" }
func (e memEndpoint) DstToString() string { return e.AddrPort.String() }
func (e memEndpoint) DstToBytes() []byte  { b, _ := e.AddrPort.MarshalBinary(); return b }
func (e memEndpoint) DstIP() netip.Addr   { return e.Addr() }
func (e memEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }

// keyPair returns two private keys, that with the lower public key first.
func keyPair(t testing.TB) (lower, higher wgkey.Private) {
	t.Helper()
	a, b := newKey(t), newKey(t)
	pa, pb := a.Public(), b.Public()
	if string(pa[:]) < string(pb[:]) {
		return a, b
	}
	return b, a
}

func newKey(t testing.TB) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func setOf(t testing.TB, peers ...Peer) peerSet {
	t.Helper()
	set, err := newPeerSet(wgkey.Public{}, peers)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// pinned keeps wireguard-go's peers from the garbage collector: their queues have finalizers, which run outside of the
// bubble that the queues were made in, and that is fatal.
var pinned struct {
	sync.Mutex
	peers []*device.Peer
}

func pin(dev *device.Device, peers ...Peer) {
	pinned.Lock()
	defer pinned.Unlock()
	for _, p := range peers {
		pinned.peers = append(pinned.peers, dev.LookupPeer(device.NoisePublicKey(p.PublicKey)))
	}
}

// node is one end of a test: a Tunnel, or wireguard-go as others use it.
type node struct {
	start func() error
	close func()
	peers func() (map[wgkey.Public]PeerStats, error)
	tun   *tuntest.ChannelTUN
}

func culvertNode(t testing.TB, bind conn.Bind, key wgkey.Private, peers ...Peer) node {
	t.Helper()
	ch := tuntest.NewChannelTUN()
	tn, err := New(ch.TUN(), Config{PrivateKey: key, Bind: bind, Peers: peers})
	if err != nil {
		t.Fatal(err)
	}
	pin(tn.dev, peers...)
	return node{tn.Start, func() { tn.Close() }, tn.snapshot, ch}
}

func stockNode(t testing.TB, bind conn.Bind, key wgkey.Private, peers ...Peer) node {
	t.Helper()
	ch := tuntest.NewChannelTUN()
	dev := device.NewDevice(steady(ch.TUN()), bind, &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	if err := dev.IpcSet(deviceText(key) + updateText(diffPeers(peerSet{}, setOf(t, peers...), false))); err != nil {
		t.Fatal(err)
	}
	pin(dev, peers...)
	return node{dev.Up, func() { dev.Close(); <-dev.Wait() }, (&Tunnel{dev: dev}).snapshot, ch}
}

// connected reports whether both ends have completed a handshake.
func connected(t testing.TB, nodes ...node) bool {
	t.Helper()
	for _, n := range nodes {
		peers, err := n.peers()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range peers {
			if p.LastHandshake.IsZero() {
				return false
			}
		}
	}
	return true
}

func peersOf(e *end) (out []Peer) {
	for _, p := range e.peers.list {
		out = append(out, *p)
	}
	return out
}
