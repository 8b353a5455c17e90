package proxy

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"culvert.dev/culvert/internal/stream"
)

// associations are the UDP associations of a server. With a shared socket it also knows which datagram belongs to which.
type associations struct {
	s      *Server
	shared *packetSocket // nil: each has its own
	done   chan struct{} // closed by close
	wg     sync.WaitGroup

	mu       sync.Mutex // guards the following
	closed   bool
	all      map[*association]struct{}
	clients  map[netip.Addr]int              // how many by clientKey
	byClient map[netip.AddrPort]*association // shared socket only: those whose port is known
	unknown  map[netip.Addr][]*association   // shared socket only: the others, in order
}

func (t *associations) init(s *Server) {
	t.s = s
	t.done = make(chan struct{})
	t.all = make(map[*association]struct{})
	t.clients = make(map[netip.Addr]int)
	t.byClient = make(map[netip.AddrPort]*association)
	t.unknown = make(map[netip.Addr][]*association)
	if s.cfg.PacketConn == nil {
		return
	}
	t.shared = newPacketSocket(s.cfg.PacketConn)
	t.wg.Go(func() {
		t.shared.receive(t.done, t.fromClients)
	})
}

func (t *associations) number() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}

// close ends all associations and waits until what they run has ended.
func (t *associations) close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	close(t.done)
	list := make([]*association, 0, len(t.all))
	for a := range t.all {
		list = append(list, a)
	}
	t.mu.Unlock()
	for _, a := range list {
		a.close()
	}
	var err error
	if t.shared != nil {
		err = t.shared.Close()
	}
	t.wg.Wait()
	return err
}

// add enters an association under its limits, and runs what it needs.
func (t *associations) add(a *association) error {
	key := clientKey(a.request.Client.Addr())
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.byClient[a.client]
	switch limit := t.s.cfg.MaxAssociations; {
	case t.closed:
		return Fail(General, "the proxy is being closed")
	case len(t.all) >= limit:
		return Fail(Exhausted, "there are %d UDP associations, which is the limit", len(t.all))
	case t.clients[key] >= max(limit/4, 1):
		return Fail(Exhausted, "the client has %d UDP associations, which is the limit", t.clients[key])
	case old != nil && (old.request.User != a.request.User || old.request.Exit != a.request.Exit):
		return Fail(NotAllowed, "port %d of the client belongs to another user's association", a.client.Port())
	}
	t.all[a] = struct{}{}
	t.clients[key]++
	a.watch = stream.NewWatch(t.s.cfg.UDPIdle, a.moved.Load, a.close)
	switch {
	case t.shared == nil:
		t.wg.Go(func() { a.socket.receive(a.ctx.Done(), a.fromClient) })
	case a.client.Port() == 0:
		t.unknown[a.client.Addr()] = append(t.unknown[a.client.Addr()], a)
	default:
		t.byClient[a.client] = a
	}
	if old != nil { // its client has gone without a word, or else nobody would have the port again
		old.close()
	}
	return nil
}

func (t *associations) remove(a *association) {
	key := clientKey(a.request.Client.Addr())
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.all[a]; !ok {
		return
	}
	delete(t.all, a)
	if t.clients[key]--; t.clients[key] == 0 {
		delete(t.clients, key)
	}
	if t.shared == nil {
		return
	}
	client := a.clientPort()
	if t.byClient[client] == a {
		delete(t.byClient, client)
	}
	addr := client.Addr()
	for i, u := range t.unknown[addr] {
		if u == a {
			t.unknown[addr] = append(t.unknown[addr][:i:i], t.unknown[addr][i+1:]...)
			break
		}
	}
	if len(t.unknown[addr]) == 0 {
		delete(t.unknown, addr)
	}
}

// fromClients takes a datagram that has come to the shared socket. It keeps nothing of b.
func (t *associations) fromClients(b []byte, from netip.AddrPort) {
	to, payload, err := parseDatagram(b)
	if err == nil && to.Port != 0 {
		if a := t.dispatch(from); a != nil {
			a.carry(payload, to)
			return
		}
	}
	t.s.counters.datagramsDropped.Add(1)
}

// dispatch returns the association that a datagram on the shared socket belongs to, nil if it is none's. A port that is not
// known goes to the oldest association of that client without one.
func (t *associations) dispatch(from netip.AddrPort) *association {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.byClient[from]; a != nil {
		return a
	}
	list := t.unknown[from.Addr()]
	if len(list) == 0 {
		return nil
	}
	a := list[0]
	if t.unknown[from.Addr()] = list[1:]; len(list) == 1 {
		delete(t.unknown, from.Addr())
	}
	a.learn(from)
	t.byClient[from] = a
	return a
}

// associateSOCKS5 serves ASSOCIATE: it lives as long as the connection.
func (s *Server) associateSOCKS5(ctx context.Context, c *prefixConn, r *Request) {
	a, bound, err := s.newAssociation(ctx, c.Conn, r)
	if err == nil {
		err = s.associations.add(a)
	}
	if err != nil {
		s.failed(r, err, 0)
		s.refuse(c.Conn, replyOf(KindOf(err)))
		if a != nil {
			a.close()
		}
		return
	}
	defer a.end()
	if s.reply(c.Conn, replySucceeded, bound) != nil {
		return
	}
	var b [64]byte // what a client says here means nothing
	for {
		if _, err := c.Conn.Read(b[:]); err != nil {
			return
		}
	}
}

// newAssociation opens the socket towards the client and returns the address that it is to send to.
func (s *Server) newAssociation(ctx context.Context, control net.Conn, r *Request) (a *association, bound netip.AddrPort, err error) {
	local := addrPortOf(control.LocalAddr())
	if !r.Client.IsValid() || !local.IsValid() {
		return nil, bound, Fail(Unsupported, "a client without an address cannot send datagrams")
	}
	socket, owned := s.associations.shared, false
	if socket == nil {
		if socket, err = listenAt(control.LocalAddr()); err != nil {
			return nil, bound, err
		}
		owned = true
	}
	bound = addrPortOf(socket.LocalAddr())
	if bound.Addr().IsUnspecified() || !bound.IsValid() {
		bound = netip.AddrPortFrom(local.Addr(), bound.Port())
	}
	request := *r
	request.Target = Target{}
	a = &association{s: s, request: request, control: control, socket: socket, owned: owned}
	a.client = netip.AddrPortFrom(r.Client.Addr(), portOf(r))
	a.ctx, a.cancel = context.WithCancel(ctx)
	return a, bound, nil
}

// portOf returns the port that a client says it will send from, 0 if it does not say. It says so for its own address only:
// one that gives another address sits behind a translator, so that its port means nothing here either.
func portOf(r *Request) uint16 {
	if a := r.Target.Addr; a.IsValid() && (a.IsUnspecified() || a == r.Client.Addr()) {
		return r.Target.Port
	}
	return 0
}

// listenAt opens a socket of the host at the address by which a client came, and at no other.
func listenAt(a net.Addr) (*packetSocket, error) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return nil, Fail(Unsupported, "no datagrams at %s", a)
	}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: tcp.IP, Zone: tcp.Zone})
	if err != nil {
		return nil, err
	}
	return newPacketSocket(c), nil
}
