package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// udpClient is a client with an association, written by hand.
type udpClient struct {
	t       testing.TB
	control net.Conn
	relay   netip.AddrPort
	socket  *net.UDPConn
}

// associateAt asks for an association, naming a port of the client.
func associateAt(t testing.TB, addr string, port int) (control net.Conn, reply byte, relay netip.AddrPort) {
	t.Helper()
	control = dialTest(t, addr)
	mustWrite(t, control, hello+"\x05\x03\x00\x01\x00\x00\x00\x00"+string([]byte{byte(port >> 8), byte(port)}))
	mustRead(t, control, helloBack)
	b := make([]byte, 4)
	if _, err := io.ReadFull(control, b); err != nil {
		t.Fatal(err)
	}
	size := 4
	if b[3] == addressIPv6 {
		size = 16
	}
	a := make([]byte, size+2)
	if _, err := io.ReadFull(control, a); err != nil {
		t.Fatal(err)
	}
	ip, _ := netip.AddrFromSlice(a[:size])
	return control, b[1], netip.AddrPortFrom(ip, uint16(a[size])<<8|uint16(a[size+1]))
}

func udpSocket(t testing.TB, at string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
	if err != nil {
		t.Skipf("no socket at %s: %v", at, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func newUDPClient(t testing.TB, addr string) *udpClient {
	t.Helper()
	socket := udpSocket(t, netip.AddrPortFrom(netip.MustParseAddrPort(addr).Addr(), 0).String())
	control, reply, relay := associateAt(t, addr, socket.LocalAddr().(*net.UDPAddr).Port)
	if reply != 0 {
		t.Fatalf("ASSOCIATE: reply %d", reply)
	}
	return &udpClient{t, control, relay, socket}
}

func (c *udpClient) send(to Target, payload []byte) {
	c.t.Helper()
	if _, err := c.socket.WriteToUDPAddrPort(append(appendHeader(nil, to), payload...), c.relay); err != nil {
		c.t.Fatal(err)
	}
}

func (c *udpClient) receive() (from Target, payload []byte) {
	c.t.Helper()
	b := make([]byte, 65535)
	n, source, err := c.socket.ReadFromUDPAddrPort(b)
	if err != nil {
		c.t.Fatal(err)
	}
	if source != c.relay {
		c.t.Errorf("a datagram from %v, want %v", source, c.relay)
	}
	from, payload, err = parseDatagram(b[:n])
	if err != nil {
		c.t.Fatal(err)
	}
	return from, payload
}

// nothing checks that nothing arrives: what would have, has been on the way before a datagram that does.
func (c *udpClient) nothingBut(to Target, payload string) {
	c.t.Helper()
	c.send(to, []byte(payload))
	if _, got := c.receive(); string(got) != payload {
		c.t.Errorf("got %q before %q", got, payload)
	}
}

// udpEcho is a program that sends datagrams back, and what it saw of their sources.
type udpEcho struct {
	at Target
	c  *net.UDPConn

	mu      sync.Mutex // guards the following
	sources map[netip.AddrPort]int
}

func newUDPEcho(t testing.TB) *udpEcho {
	t.Helper()
	e := &udpEcho{c: udpSocket(t, "127.0.0.1:0"), sources: make(map[netip.AddrPort]int)}
	e.c.SetDeadline(time.Time{})
	e.at = targetAt(e.c.LocalAddr().(*net.UDPAddr).AddrPort())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65535)
		for {
			n, from, err := e.c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			e.mu.Lock()
			e.sources[from]++
			e.mu.Unlock()
			e.c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	t.Cleanup(func() { e.c.Close(); <-done })
	return e
}

func (e *udpEcho) seen() (list []netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for a := range e.sources {
		list = append(list, a)
	}
	return list
}

// udpModes runs a test with a socket for each association and with one for all.
func udpModes(t *testing.T, test func(t *testing.T, cfg Config)) {
	t.Run("own sockets", func(t *testing.T) { test(t, Config{SOCKS: true, UDP: true, Dialer: hostDialer("")}) })
	t.Run("shared socket", func(t *testing.T) {
		test(t, Config{SOCKS: true, UDP: true, Dialer: hostDialer(""), PacketConn: udpSocket2(t)})
	})
}

// udpSocket2 is a socket without deadlines, which the server closes.
func udpSocket2(t testing.TB) net.PacketConn {
	c := udpSocket(t, "127.0.0.1:0")
	c.SetDeadline(time.Time{})
	return c
}

func TestDatagrams(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		s, addr := run(t, cfg)
		c := newUDPClient(t, addr)
		one, two := newUDPEcho(t), newUDPEcho(t)
		for _, size := range []int{0, 1, 1400, 4097, 60000, maxDatagram - 10} {
			want := bytes.Repeat([]byte("x"), size)
			c.send(one.at, want)
			if from, got := c.receive(); from != one.at || !bytes.Equal(got, want) {
				t.Errorf("%d bytes: got %d from %v, want them from %v", size, len(got), from, one.at)
			}
		}
		c.send(Target{Name: "two.example", Port: two.at.Port}, []byte("by name"))
		if from, got := c.receive(); from != two.at || string(got) != "by name" {
			t.Errorf("got %q from %v, want it from %v", got, from, two.at)
		}
		if a, b := one.seen(), two.seen(); len(a) != 1 || len(b) != 1 || a[0] != b[0] {
			t.Errorf("two servers see %v and %v: the mapping depends on the endpoint", a, b)
		}
		// Somebody to whom nothing was sent reaches the client, with his own address.
		third := newUDPEcho(t)
		third.c.WriteToUDPAddrPort([]byte("unasked"), one.seen()[0])
		if from, got := c.receive(); from != third.at || string(got) != "unasked" {
			t.Errorf("got %q from %v, want it from %v", got, from, third.at)
		}
		await(t, "counted", func() bool { return s.Stats().Datagrams == 15 })
		if got := s.Stats(); got.Associations != 1 || got.DatagramsDropped != 0 || got.Dialed != 1 {
			t.Errorf("got %+v", got)
		}
		c.control.Close()
		await(t, "ended with the connection", func() bool { return s.Stats().Associations == 0 && s.Stats().Active == 0 })
		await(t, "the outer end is closed", func() bool {
			probe, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(one.seen()[0]))
			if err == nil {
				probe.Close()
			}
			return err == nil
		})
	})
}

// TestNobodyElseGetsIn: neither from another address nor from another port, in either direction.
func TestNobodyElseGetsIn(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		s, addr := run(t, cfg)
		c := newUDPClient(t, addr)
		e := newUDPEcho(t)
		c.nothingBut(e.at, "first")
		before := s.Stats().DatagramsDropped
		header := appendHeader(nil, e.at)
		strangers := []string{"127.0.0.1:0", "127.0.0.2:0"}
		for _, from := range strangers {
			stranger := udpSocket(t, from)
			if _, err := stranger.WriteToUDPAddrPort(append(header, "stranger"...), c.relay); err != nil {
				t.Fatal(err)
			}
		}
		await(t, "dropped", func() bool { return s.Stats().DatagramsDropped-before == uint64(len(strangers)) })
		c.nothingBut(e.at, "second")
		e.mu.Lock()
		defer e.mu.Unlock()
		if n := e.sources; len(n) != 1 {
			t.Errorf("the server saw %v", n)
		}
		for _, n := range e.sources {
			if n != 2 {
				t.Errorf("the server got %d datagrams, want 2", n)
			}
		}
	})
}

// TestPortNotNamed: the first datagram from the client's address says which port it is; from then on no other does.
func TestPortNotNamed(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		s, addr := run(t, cfg)
		control, _, relay := associateAt(t, addr, 0)
		e := newUDPEcho(t)
		stranger := udpSocket(t, "127.0.0.2:0")
		stranger.WriteToUDPAddrPort(append(appendHeader(nil, e.at), "stranger"...), relay)
		await(t, "dropped", func() bool { return s.Stats().DatagramsDropped == 1 })
		c := &udpClient{t, control, relay, udpSocket(t, "127.0.0.1:0")}
		c.socket.WriteToUDPAddrPort([]byte("no header"), relay) // does not count as the first
		c.nothingBut(e.at, "first")
		other := udpSocket(t, "127.0.0.1:0")
		other.WriteToUDPAddrPort(append(appendHeader(nil, e.at), "other port"...), relay)
		await(t, "dropped", func() bool { return s.Stats().DatagramsDropped == 3 })
		c.nothingBut(e.at, "second")
	})
}

// TestSeveralOnOneSocket: associations of one client are told apart, also when they name no port.
func TestSeveralOnOneSocket(t *testing.T) {
	d := hostDialer("")
	s, addr := run(t, Config{SOCKS: true, UDP: true, Dialer: d, PacketConn: udpSocket2(t)})
	e := newUDPEcho(t)
	named := newUDPClient(t, addr)
	var clients []*udpClient
	for range 3 {
		control, _, relay := associateAt(t, addr, 0)
		if relay != named.relay {
			t.Errorf("relay at %v, want %v", relay, named.relay)
		}
		clients = append(clients, &udpClient{t, control, relay, udpSocket(t, "127.0.0.1:0")})
	}
	clients = append(clients, named)
	for i, c := range clients {
		c.nothingBut(e.at, "client "+strconv.Itoa(i))
	}
	for i, c := range clients {
		c.nothingBut(e.at, "again "+strconv.Itoa(i))
	}
	if got := e.seen(); len(got) != 4 {
		t.Errorf("the server sees %v, want 4 sources", got)
	}
	for _, c := range clients {
		c.control.Close()
	}
	await(t, "ended", func() bool { return s.Stats().Associations == 0 })
	if a := &s.associations; len(a.byClient)+len(a.unknown)+len(a.clients) != 0 {
		t.Errorf("left: %v %v %v", a.byClient, a.unknown, a.clients)
	}
}

func TestBadDatagramsAreDropped(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		s, addr := run(t, cfg)
		c := newUDPClient(t, addr)
		e := newUDPEcho(t)
		good := append(appendHeader(nil, e.at), "x"...)
		fragment := bytes.Clone(good)
		fragment[2] = 1
		bad := [][]byte{
			nil, good[:2], good[:5], good[:9], fragment,
			append(appendHeader(nil, Target{Addr: e.at.Addr}), "to port 0"...),
			{0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7},
			{0, 0, 0, 3, 0, 0, 80},
			{0, 0, 0, 3, 200, 'a', 0, 80},
			append([]byte{0, 0, 0, 3, 3}, "a b\x00\x50"...),
		}
		for _, b := range bad {
			if _, err := c.socket.WriteToUDPAddrPort(b, c.relay); err != nil {
				t.Fatal(err)
			}
		}
		await(t, "dropped", func() bool { return s.Stats().DatagramsDropped == uint64(len(bad)) })
		c.nothingBut(e.at, "good")
	})
}

// TestClosedTarget: the ICMP error that it causes ends nothing.
func TestClosedTarget(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		_, addr := run(t, cfg)
		c := newUDPClient(t, addr)
		gone := udpSocket(t, "127.0.0.1:0")
		closed := targetAt(gone.LocalAddr().(*net.UDPAddr).AddrPort())
		gone.Close()
		e := newUDPEcho(t)
		for range 3 {
			c.send(closed, []byte("nobody"))
			c.nothingBut(e.at, "somebody")
		}
	})
}

// TestClientSocketGone: what is sent to a client whose socket is closed causes ICMP errors too.
func TestClientSocketGone(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		s, addr := run(t, cfg)
		c := newUDPClient(t, addr)
		e := newUDPEcho(t)
		c.nothingBut(e.at, "first")
		outer := e.seen()[0]
		own := c.socket.LocalAddr().String()
		c.socket.Close()
		for range 3 {
			e.c.WriteToUDPAddrPort([]byte("to nobody"), outer)
		}
		await(t, "sent", func() bool { st := s.Stats(); return st.Datagrams+st.DatagramsDropped >= 5 })
		c.socket = udpSocket(t, own)
		c.nothingBut(e.at, "back again")
	})
}

func TestAssociationLimits(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		cfg.MaxAssociations = 8
		s, addr := run(t, cfg)
		for range 2 {
			newUDPClient(t, addr)
		}
		control, reply, _ := associateAt(t, addr, 0)
		if reply != replyGeneral {
			t.Errorf("a third one of one client: reply %d", reply)
		}
		mustEnd(t, control)
		if got := s.Stats(); got.Associations != 2 || got.Failed[Exhausted] != 1 {
			t.Errorf("got %+v", got)
		}
	})
	s, err := New(Config{SOCKS: true, UDP: true, Dialer: failing(errPlain), MaxAssociations: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, want := range []bool{true, true, false} {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), 1)
		_, inner := net.Pipe()
		socket, err := listenAt(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		a := &association{s: s, request: Request{Client: client}, control: inner, socket: socket, owned: true, client: client}
		a.ctx, a.cancel = context.WithCancel(t.Context())
		defer a.close()
		if err := s.associations.add(a); (err == nil) != want {
			t.Errorf("association %d of another client: %v", i, err)
		}
	}
}

// TestOuterEnd: it is opened at the first datagram only; what comes before it is open waits, in order and within bounds.
func TestOuterEnd(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		open := make(chan struct{})
		var opened atomic.Int32
		cfg.Dialer.(*fakeDialer).listen = func(ctx context.Context, _ *Request) (PacketConn, error) {
			opened.Add(1)
			<-open
			return listenHost()
		}
		s, addr := run(t, cfg)
		c := newUDPClient(t, addr)
		if opened.Load() != 0 {
			t.Error("opened without a datagram")
		}
		e := newUDPEcho(t)
		for i := range maxQueued + 3 {
			c.send(e.at, []byte{byte(i)})
		}
		await(t, "dropped", func() bool { return s.Stats().DatagramsDropped == 3 })
		close(open)
		for i := range maxQueued {
			if _, got := c.receive(); len(got) != 1 || got[0] != byte(i) {
				t.Errorf("got %v, want %d", got, i)
			}
		}
		if opened.Load() != 1 {
			t.Errorf("opened %d times", opened.Load())
		}
		if got := cfg.Dialer.(*fakeDialer).last(t); got.Target != (Target{}) || got.Protocol != "socks5" {
			t.Errorf("asked for %+v", got)
		}
	})
}

// TestOuterEndFails: the association stays, and a later datagram tries again.
func TestOuterEndFails(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		cfg.Dialer = failing(Fail(NetworkUnreachable, "no way"))
		s, addr := run(t, cfg)
		c := newUDPClient(t, addr)
		to := Target{Name: "x", Port: 1}
		for range 2 {
			c.send(to, []byte("x"))
		}
		await(t, "dropped", func() bool { return s.Stats().DatagramsDropped == 2 })
		if got := s.Stats(); got.Failed[NetworkUnreachable] != 1 || got.Associations != 1 {
			t.Errorf("got %+v", got)
		}
		await(t, "tried again", func() bool {
			c.send(to, []byte("x"))
			return s.Stats().Failed[NetworkUnreachable] == 2
		})
	})
}

// TestRelaySocketAddress: it is bound to the address by which the client came and to no other.
func TestRelaySocketAddress(t *testing.T) {
	for _, at := range []string{"127.0.0.3:0", "[::1]:0"} {
		_, addr := runAt(t, Config{SOCKS: true, UDP: true, Dialer: hostDialer("")}, at)
		c := newUDPClient(t, addr)
		if want := netip.MustParseAddrPort(addr).Addr(); c.relay.Addr() != want {
			t.Errorf("relay at %v, want %v", c.relay, want)
		}
		if at[0] == '[' {
			continue
		}
		elsewhere, err := net.Dial("udp", "127.0.0.1:"+strconv.Itoa(int(c.relay.Port())))
		if err != nil {
			t.Fatal(err)
		}
		defer elsewhere.Close()
		elsewhere.SetDeadline(time.Now().Add(patience))
		elsewhere.Write([]byte("x"))
		if _, err := elsewhere.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the port at another address: %v, want that nothing listens", err)
		}
	}
}

// dialFrom is a dial function of Associate which keeps its port.
func dialFrom(local **net.UDPAddr) func(context.Context, netip.AddrPort) (net.Conn, error) {
	return func(_ context.Context, relay netip.AddrPort) (net.Conn, error) {
		c, err := net.DialUDP("udp", *local, net.UDPAddrFromAddrPort(relay))
		if err == nil {
			*local = c.LocalAddr().(*net.UDPAddr)
		}
		return c, err
	}
}

// TestAssociateClient is this package's client against its server.
func TestAssociateClient(t *testing.T) {
	udpModes(t, func(t *testing.T, cfg Config) {
		s, addr := run(t, cfg)
		var local *net.UDPAddr
		control := dialTest(t, addr)
		control.SetDeadline(time.Time{})
		a, err := Associate(t.Context(), control, dialFrom(&local))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		e := newUDPEcho(t)
		b := make([]byte, 65535)
		for _, size := range []int{0, 1, maxDatagram - 10} {
			if err := a.WriteTo(bytes.Repeat([]byte("x"), size), e.at); err != nil {
				t.Fatal(err)
			}
			if n, from, err := a.ReadFrom(b); err != nil || n != size || from != e.at {
				t.Errorf("%d bytes: got %d from %v, %v", size, n, from, err)
			}
		}
		if err := a.WriteTo(make([]byte, maxDatagram), e.at); err == nil {
			t.Error("more than fits a datagram is accepted")
		}
		if err := a.WriteTo([]byte("by name"), Target{Name: "x.example", Port: e.at.Port}); err != nil {
			t.Fatal(err)
		}
		if n, from, err := a.ReadFrom(b); err != nil || string(b[:n]) != "by name" || from != e.at {
			t.Errorf("got %q from %v, %v", b[:n], from, err)
		}
		read := make(chan error, 1)
		go func() { _, _, err := a.ReadFrom(b); read <- err }()
		s.Close() // the server ends it
		if err := <-read; err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestAssociateRefused(t *testing.T) {
	_, addr := run(t, Config{SOCKS: true, Dialer: failing(errPlain)})
	var relay net.Conn
	_, err := Associate(t.Context(), dialTest(t, addr), func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
		var err error
		relay, err = net.Dial("udp", to.String())
		return relay, err
	})
	if KindOf(err) != Unsupported {
		t.Errorf("got %v", err)
	}
	if relay.Close() == nil {
		t.Error("the socket is left open")
	}
	if _, err := Associate(t.Context(), dialTest(t, addr), func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, errPlain }); !errors.Is(err, errPlain) {
		t.Errorf("got %v", err)
	}
}
