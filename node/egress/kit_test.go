package egress

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// world is a mesh in memory: hosts by address, each with a port for connections and one for datagrams, all the same distance away.
type world struct {
	t   testing.TB
	rtt time.Duration // of every path

	mu      sync.Mutex // guards the following
	serve   map[netip.AddrPort]func(net.Conn)
	silent  map[netip.Addr]bool // answers nothing
	udp     map[netip.AddrPort]*port
	dialled []netip.AddrPort
	nextUDP uint16
	noV6    bool // the node has no IPv6 address
	peers   map[string][]netip.Addr
	routes  map[netip.Prefix]string // AllowedIPs that are no peer's own address
	asked   []string                // names that Resolve was asked for
	answers map[string][]netip.Addr // of Resolve
	direct  directWorld
}

var (
	ownV4 = netip.MustParseAddr("100.64.0.1")
	ownV6 = netip.MustParseAddr("fd7a::1")
)

func newWorld(t testing.TB) *world {
	w := newNetwork(t)
	w.direct.udp = newNetwork(t)
	return w
}

func newNetwork(t testing.TB) *world {
	return &world{
		t: t, serve: map[netip.AddrPort]func(net.Conn){}, silent: map[netip.Addr]bool{}, udp: map[netip.AddrPort]*port{},
		nextUDP: 40000, peers: map[string][]netip.Addr{}, routes: map[netip.Prefix]string{}, answers: map[string][]netip.Addr{},
	}
}

// config returns an Egress' view of the world.
func (w *world) config() Config {
	return Config{
		Mesh: w,
		Names: func(name string) ([]netip.Addr, string, bool) {
			if name == "self" || name == "self.mesh" {
				return []netip.Addr{ownV4, ownV6}, "", true
			}
			short, below := cutMesh(name)
			addrs, ok := w.peer(short)
			if !ok {
				return nil, "", below
			}
			return addrs, short, true
		},
		Routes:  w.route,
		Exit:    w.peer,
		Resolve: w.resolve,
		Self:    func(a netip.Addr) bool { return a == ownV4 || a == ownV6 },
		DialSelf: func(_ context.Context, network string, port uint16) (net.Conn, error) {
			near, far := net.Pipe()
			go echo(far)
			return near, nil
		},
		Direct: w.direct.net(),
	}
}

func cutMesh(name string) (string, bool) {
	if n := len(name) - len(".mesh"); n > 0 && name[n:] == ".mesh" {
		return name[:n], true
	}
	return name, false
}

func (w *world) egress() *Egress {
	e := New(w.config())
	w.t.Cleanup(e.Close)
	return e
}

func (w *world) peer(name string) ([]netip.Addr, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a, ok := w.peers[name]
	return a, ok
}

func (w *world) route(a netip.Addr) (peer string, length int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, addrs := range w.peers {
		if slices.Contains(addrs, a) {
			return name, a.BitLen(), true
		}
	}
	length = -1
	for p, name := range w.routes {
		if p.Contains(a) && p.Bits() > length {
			peer, length, ok = name, p.Bits(), true
		}
	}
	return peer, length, ok
}

func (w *world) resolve(_ context.Context, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, host)
	if a, ok := w.answers[host]; ok {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// setSilent makes a host answer nothing, or speak again.
func (w *world) setSilent(a string, silent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent[netip.MustParseAddr(a)] = silent
}

func (w *world) listen(at string, serve func(net.Conn)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serve[netip.MustParseAddrPort(at)] = serve
}

// dials returns how many connections have been asked for at an address, or at all.
func (w *world) dials(at string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.dialled {
		if at == "" || a.String() == at {
			n++
		}
	}
	return n
}

// DialTCP implements Mesh.
func (w *world) DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dialled = append(w.dialled, to)
	serve, silent, no := w.serve[to], w.silent[to.Addr()], w.noV6 && to.Addr().Is6()
	w.mu.Unlock()
	fail := func(err error) (net.Conn, error) { return nil, os.NewSyscallError("connect", err) }
	if no {
		return fail(syscall.EADDRNOTAVAIL)
	}
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(w.rtt):
	}
	if serve == nil {
		return fail(syscall.ECONNREFUSED)
	}
	near, far := path(w, netip.AddrPortFrom(ownV4, 50000), to)
	go serve(far)
	return near, nil
}

// path returns both ends of a connection on which bytes take half the round trip.
func path(w *world, from, to netip.AddrPort) (near, far net.Conn) {
	a, aOut := net.Pipe()
	b, bOut := net.Pipe()
	go carry(w, bOut, aOut, to.Addr())
	go carry(w, aOut, bOut, to.Addr())
	return &end{a, from, to}, &end{b, to, from}
}

type segment struct {
	at time.Time
	b  []byte
}

// carry moves bytes from src to dst, late. What is for or from a silent host is lost.
func carry(w *world, dst, src net.Conn, host netip.Addr) {
	line := make(chan segment, 1024)
	go func() {
		defer dst.Close()
		for s := range line {
			time.Sleep(time.Until(s.at))
			w.mu.Lock()
			silent := w.silent[host]
			w.mu.Unlock()
			if silent {
				continue
			}
			dst.Write(s.b)
		}
	}()
	defer close(line)
	for {
		b := make([]byte, 4096)
		n, err := src.Read(b)
		if err != nil {
			src.Close()
			return
		}
		line <- segment{time.Now().Add(w.rtt / 2), b[:n]}
	}
}

type end struct {
	net.Conn
	local, remote netip.AddrPort
}

func (e *end) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(e.local) }
func (e *end) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(e.remote) }

// echo says what it hears.
func echo(c net.Conn) {
	defer c.Close()
	io.Copy(c, c)
}

// port is a UDP port of the world.
type port struct {
	w     *world
	at    netip.AddrPort
	in    chan packet
	next  *packet // that WaitRead has taken already
	once  sync.Once
	ended chan struct{}
}

type packet struct {
	b    []byte
	from netip.AddrPort
}

// ListenPacket implements Mesh.
func (w *world) ListenPacket(at netip.AddrPort) (net.PacketConn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at.Addr().IsUnspecified() {
		own := ownV4
		if at.Addr().Is6() {
			own = ownV6
		}
		at = netip.AddrPortFrom(own, at.Port())
	}
	if at.Addr().Is6() && w.noV6 {
		return nil, os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)
	}
	if at.Port() == 0 {
		w.nextUDP++
		at = netip.AddrPortFrom(at.Addr(), w.nextUDP)
	}
	if w.udp[at] != nil {
		return nil, os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	p := &port{w: w, at: at, in: make(chan packet, 256), ended: make(chan struct{})}
	w.udp[at] = p
	return p, nil
}

func (p *port) ReadFrom(b []byte) (int, net.Addr, error) {
	if err := p.WaitRead(); err != nil {
		return 0, nil, err
	}
	q := p.next
	p.next = nil
	return copy(b, q.b), net.UDPAddrFromAddrPort(q.from), nil
}

// WaitRead waits for a datagram, as the sockets of the mesh can.
func (p *port) WaitRead() error {
	if p.next != nil {
		return nil
	}
	select {
	case q := <-p.in:
		p.next = &q
		return nil
	case <-p.ended:
		return net.ErrClosed
	}
}

func (p *port) WriteTo(b []byte, to net.Addr) (int, error) {
	p.w.mu.Lock()
	dst := p.w.udp[to.(*net.UDPAddr).AddrPort()]
	p.w.mu.Unlock()
	if dst != nil {
		select {
		case dst.in <- packet{slices.Clone(b), p.at}:
		default:
		}
	}
	return len(b), nil
}

func (p *port) Close() error {
	p.once.Do(func() {
		close(p.ended)
		p.w.mu.Lock()
		delete(p.w.udp, p.at)
		p.w.mu.Unlock()
	})
	return nil
}

func (p *port) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(p.at) }
func (p *port) SetDeadline(time.Time) error      { return nil }
func (p *port) SetReadDeadline(time.Time) error  { return nil }
func (p *port) SetWriteDeadline(time.Time) error { return nil }

// listenUDP answers datagrams at an address with answer's result.
func (w *world) listenUDP(at string, answer func([]byte) []byte) {
	pc, err := w.ListenPacket(netip.MustParseAddrPort(at))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(answer(b[:n]), from)
		}
	}()
}

// directWorld is the host's own network.
type directWorld struct {
	mu      sync.Mutex
	asked   []string // names
	dialled []string
	answers map[string][]netip.Addr
	dial    func(address string) (net.Conn, error)
	own     []netip.Addr
	udp     *world // whose ports the host's network has
}

func (d *directWorld) net() HostNet {
	return HostNet{
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.dialled = append(d.dialled, address)
			if d.dial != nil {
				return d.dial(address)
			}
			near, far := net.Pipe()
			go echo(far)
			return near, nil
		},
		ListenPacket: func(_ context.Context, _, address string) (net.PacketConn, error) {
			return d.udp.ListenPacket(netip.MustParseAddrPort(address))
		},
		LookupNetIP: func(_ context.Context, _, host string) ([]netip.Addr, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.asked = append(d.asked, host)
			if a, ok := d.answers[host]; ok {
				return a, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		},
		Addrs: func() ([]netip.Addr, error) { return d.own, nil },
	}
}

// target parses a target; a name may be one that no program would ask for.
func target(s string) proxy.Target {
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		panic(err)
	}
	n, _ := net.LookupPort("tcp", portText)
	if a, err := netip.ParseAddr(host); err == nil {
		return proxy.Target{Addr: a, Port: uint16(n)}
	}
	return proxy.Target{Name: host, Port: uint16(n)}
}

// greetingOf reads the line that an exit's connection starts with.
func greetingOf(t testing.TB, c net.Conn) string {
	t.Helper()
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("read: %v", err)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

func via(exits ...string) func() Rules { return func() Rules { return Rules{Exits: exits} } }

func request(s string) *proxy.Request { return &proxy.Request{Protocol: "socks5", Target: target(s)} }
