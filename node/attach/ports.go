package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/net/ipv4"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
)

// relays is what carries datagrams between peers; relay.Pool is it.
type relays interface {
	Send(to wgkey.Public, datagrams [][]byte) error
	Receive(done <-chan struct{}, bufs [][]byte, sizes []int, from []wgkey.Public) (n int, err error)
}

// ports are the relay as WireGuard sees it: for each peer a loopback UDP port, which WireGuard has as the peer's endpoint. What
// comes to a port goes by relay to the peer; what the relay brings from a peer goes from its port to WireGuard's. One goroutine
// reads the relay, one each port.
type ports struct {
	relays    relays
	wireguard atomic.Uint32                                  // WireGuard's listen port; 0: it has none
	sealed    func(packet []byte, from wgkey.Public)         // takes what is not WireGuard's
	delivered func(p *port)                                  // called after something was given to WireGuard
	dropped   struct{ unknown, foreign, down atomic.Uint64 } // by reason: no such peer; not from WireGuard; WireGuard has no port

	wg sync.WaitGroup

	mu    sync.Mutex // guards the following
	peers map[wgkey.Public]*port
}

// port is that of one peer.
type port struct {
	key  wgkey.Public
	conn *net.UDPConn
	addr netip.AddrPort

	rxBytes, rxPackets atomic.Uint64 // from the relay, given to WireGuard
	txPackets          atomic.Uint64 // from WireGuard, for the relay
	lost               atomic.Uint64 // of these: no relay took them
	here               atomic.Bool   // the relay has brought something of the peer's
}

const (
	portBatch = 16
	// portOverhead is what WireGuard adds to a packet of the tunnel's MTU, and more.
	portOverhead = 96
	// receiveLen is the longest datagram that there is.
	receiveLen = 1 << 16
	// portBuffer is asked of the kernel for a port: WireGuard sends in bursts.
	portBuffer = 1 << 20
)

var (
	loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	// portAddr is where ports are, where the host has all of 127.0.0.0/8: an endpoint there is known to be one of these ports, and
	// not a program of the operator's. The numbers are "WG" in ASCII.
	portAddr = netip.AddrFrom4([4]byte{127, 'W', 'G', 1})
)

func newPorts(r relays, sealed func([]byte, wgkey.Public), delivered func(*port)) *ports {
	return &ports{relays: r, sealed: sealed, delivered: delivered, peers: map[wgkey.Public]*port{}}
}

// open makes the port of a peer. mtu is the tunnel's. A peer whose endpoint is such a port, from a run that has ended, gets that one
// again.
func (s *ports) open(key wgkey.Public, endpoint netip.AddrPort, mtu int) (*port, error) {
	tries := []netip.AddrPort{netip.AddrPortFrom(portAddr, 0), netip.AddrPortFrom(loopback, 0)}
	if endpoint.Addr() == portAddr {
		tries = slices.Insert(tries, 0, endpoint)
	}
	var conn *net.UDPConn
	var err error
	for _, at := range tries {
		if conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open a port for the relay of peer %s: %w", key.Short(), err)
	}
	conn.SetReadBuffer(portBuffer)  // or as much as the host grants
	conn.SetWriteBuffer(portBuffer) // likewise
	p := &port{key: key, conn: conn, addr: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	s.mu.Lock()
	s.peers[key] = p
	s.mu.Unlock()
	s.wg.Go(func() { s.readPort(p, max(mtu, 1280)+portOverhead) })
	return p, nil
}

// close ends the port of a peer.
func (s *ports) close(p *port) {
	s.mu.Lock()
	if s.peers[p.key] == p {
		delete(s.peers, p.key)
	}
	s.mu.Unlock()
	p.conn.Close()
}

// closeAll ends all ports, and returns when nothing of them runs any more; run must have ended, or be about to.
func (s *ports) closeAll() {
	s.mu.Lock()
	for _, p := range s.peers {
		p.conn.Close()
	}
	clear(s.peers)
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *ports) find(key wgkey.Public) *port {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers[key]
}

// readPort takes what WireGuard sends to a peer, until the port is closed.
func (s *ports) readPort(p *port, length int) {
	batch := make([]ipv4.Message, portBatch)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, length)}
	}
	conn := ipv4.NewPacketConn(p.conn)
	datagrams := make([][]byte, 0, portBatch)
	for {
		n, err := conn.ReadBatch(batch, 0)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an ICMP error: WireGuard's port is closed for a moment
			continue
		}
		datagrams = datagrams[:0]
		for i := range batch[:n] {
			from, ok := batch[i].Addr.(*net.UDPAddr)
			if !ok || !s.isWireGuard(from.AddrPort()) {
				s.dropped.foreign.Add(1)
				continue
			}
			datagrams = append(datagrams, batch[i].Buffers[0][:batch[i].N])
		}
		if len(datagrams) == 0 {
			continue
		}
		p.txPackets.Add(uint64(len(datagrams)))
		if s.relays.Send(p.key, datagrams) != nil { // no relay is connected
			p.lost.Add(uint64(len(datagrams)))
		}
	}
}

// isWireGuard reports whether a datagram comes from WireGuard's own socket: other programs of the host must not speak for it.
func (s *ports) isWireGuard(from netip.AddrPort) bool {
	return from.Addr().Unmap().IsLoopback() && uint32(from.Port()) == s.wireguard.Load()
}

// run takes what the relay brings, until done is closed or the relay is.
func (s *ports) run(done <-chan struct{}) {
	bufs, sizes, from := make([][]byte, portBatch), make([]int, portBatch), make([]wgkey.Public, portBatch)
	for i := range bufs {
		bufs[i] = make([]byte, receiveLen)
	}
	for {
		n, err := s.relays.Receive(done, bufs, sizes, from)
		if err != nil {
			return
		}
		for i := range n {
			s.deliver(bufs[i][:sizes[i]], from[i])
		}
	}
}

// deliver gives a datagram of a peer's to whom it is for.
func (s *ports) deliver(b []byte, from wgkey.Public) {
	p := s.find(from)
	if p == nil {
		s.dropped.unknown.Add(1)
		return
	}
	p.here.Store(true)
	if exchange.Is(b) {
		s.sealed(b, from)
		return
	}
	to := s.wireguard.Load()
	if to == 0 {
		s.dropped.down.Add(1)
		return
	}
	// Counted before WireGuard can have counted it.
	p.rxPackets.Add(1)
	p.rxBytes.Add(uint64(len(b)))
	p.conn.WriteToUDPAddrPort(b, netip.AddrPortFrom(loopback, uint16(to))) // UDP promises nothing
	s.delivered(p)
}
