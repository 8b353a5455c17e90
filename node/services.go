package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/stream"
)

// localService is one section of the configuration that has sockets: a proxy, a forward, a published port; or the node's own SOCKS5 in
// the mesh.
type localService struct {
	kind    string   // as status names it
	conf    any      // to compare
	listen  []string // where, as it was written
	sockets []socket
	handle  func(ctx context.Context, c net.Conn) // of stream sockets
	packets packetServer                          // of datagram sockets; nil without any
	close   func()
	stats   func() ServiceStatus // what the service itself counts
}

// wanted is a service that the configuration asks for. It is built only if the one in force is not the same already: a reload leaves
// alone what it does not change.
type wanted struct {
	kind  string
	conf  any // without the lines where it stands
	build func() (*localService, error)
}

// packetServer serves datagram sockets, which it owns.
type packetServer interface {
	Serve(net.PacketConn) error
	Close() error
}

// socket is where a service listens.
type socket struct {
	key      string                    // unique among all that are open at one time: "tcp 127.0.0.1:1080", "mesh udp 100.64.0.1:53"
	where    string                    // for errors: "culvert.conf:12: [SOCKS5] Listen"
	listen   func() (io.Closer, error) // a net.Listener or a net.PacketConn
	max      int                       // connections at once; 0: the default
	mode     fs.FileMode               // of the file of a unix socket
	optional bool                      // an address that this host need not have
	err      error                     // why it is not open
}

// slot is an open socket. Which service gets its connections may change; the socket stays.
type slot struct {
	socket
	opened  io.Closer // what listen has returned
	service atomic.Pointer[localService]
	server  *stream.Server // of a stream socket
	packets packetServer   // of a datagram socket
	served  chan struct{}  // closed once nothing is accepted any more
}

// services are those in force. Node.mu guards them.
type services struct {
	n     *Node
	list  []*localService
	slots map[string]*slot
	wg    sync.WaitGroup

	ctx    context.Context // of connections whose server accepts no more, as another has its address
	cancel context.CancelFunc
}

func newServices(n *Node) *services {
	s := &services{n: n, slots: make(map[string]*slot)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// wantedServices are those that a configuration asks for.
func (n *Node) wantedServices(conf *config.Config) []wanted {
	return slices.Concat(n.exitProxyServices(conf), n.proxyServices(conf), n.forwardServices(conf), n.publishServices(conf))
}

// plan is a set of services that may come into force.
type plan struct {
	s       *services
	list    []*localService
	claimed map[string]string // keys of sockets, and where they are asked for
	opened  map[string]io.Closer
	late    []socket        // those that only sockets which go stand in the way of
	fresh   []*localService // not in force yet
}

// prepare opens the sockets that are wanted and not open yet. The caller either commits, or rolls back: then all is as before.
func (s *services) prepare(list []wanted) (commit, rollback func(), err error) {
	if s.n.stopping.Load() {
		return nil, nil, errors.New("the node is stopping")
	}
	p := &plan{s: s, claimed: make(map[string]string), opened: make(map[string]io.Closer)}
	for _, w := range list {
		if err = p.add(w); err != nil {
			break
		}
	}
	if err == nil {
		err = p.checkLate()
	}
	if err != nil {
		p.rollback()
		return nil, nil, err
	}
	return p.commit, p.rollback, nil
}

// add finds the service or builds it, and opens the sockets that it lacks.
func (p *plan) add(w wanted) error {
	svc := p.s.find(w)
	if svc == nil {
		var err error
		if svc, err = w.build(); err != nil {
			return err
		}
		svc.kind, svc.conf = w.kind, w.conf
		p.fresh = append(p.fresh, svc)
	}
	p.list = append(p.list, svc)

	for _, k := range svc.sockets {
		if other, ok := p.claimed[k.key]; ok {
			return fmt.Errorf("%s: %s is taken already, by %s", k.where, k.key, other)
		}
		p.claimed[k.key] = k.where
		if p.s.slots[k.key] != nil {
			continue
		}
		c, err := k.listen()
		switch {
		case err == nil:
			p.opened[k.key] = c
		case k.optional && errors.Is(err, syscall.EADDRNOTAVAIL):
		case errors.Is(err, syscall.EADDRINUSE):
			k.err = err
			p.late = append(p.late, k)
		default:
			return fmt.Errorf("%s: %w", k.where, err)
		}
	}
	return nil
}

// checkLate returns the error of the first socket that something else than what goes is in the way of.
func (p *plan) checkLate() error {
	var going []string
	for key := range p.s.slots {
		going = append(going, key)
	}
	going = slices.DeleteFunc(going, func(key string) bool { return p.claimed[key] != "" }) // those change hands

	for _, k := range p.late {
		if !slices.ContainsFunc(going, func(key string) bool { return samePort(k.key, key) }) {
			return fmt.Errorf("%s: %w", k.where, k.err)
		}
	}
	return nil
}

// samePort reports whether two sockets may be in each other's way, because one has the address of the other, or every address.
func samePort(a, b string) bool {
	if a == b {
		return true
	}
	network := func(key string) string {
		n, _, _ := strings.Cut(key, " ")
		return strings.TrimRight(n, "46")
	}
	port := func(key string) string { return key[strings.LastIndex(key, ":")+1:] }
	return network(a) == network(b) && (network(a) == "tcp" || network(a) == "udp") && port(a) == port(b)
}

// find returns the service in force that w describes.
func (s *services) find(w wanted) *localService {
	i := slices.IndexFunc(s.list, func(o *localService) bool { return o.kind == w.kind && reflect.DeepEqual(o.conf, w.conf) })
	if i < 0 {
		return nil
	}
	return s.list[i]
}

func (p *plan) rollback() {
	for _, c := range p.opened {
		c.Close()
	}
	for _, f := range p.fresh {
		f.close()
	}
}

func (p *plan) commit() {
	s := p.s
	old := s.slots
	for key, sl := range old { // first: they may be in the way of those to come
		if p.claimed[key] == "" {
			sl.close()
		}
	}
	for _, o := range s.list {
		if !slices.Contains(p.list, o) {
			o.close()
		}
	}
	for _, k := range p.late {
		if c, err := k.listen(); err == nil {
			p.opened[k.key] = c
		} else {
			s.n.log.Error("a socket could not be opened; the next reload tries again", "at", k.where, "err", err)
		}
	}
	s.slots = make(map[string]*slot)
	for _, svc := range p.list {
		for _, k := range svc.sockets {
			if sl := s.place(svc, k, old[k.key], p.opened[k.key]); sl != nil {
				s.slots[k.key] = sl
			}
		}
	}
	s.list = p.list
}

// place gives a socket to a service: the one that was opened for it, or one that another service had.
func (s *services) place(svc *localService, k socket, had *slot, opened io.Closer) *slot {
	if had != nil && (had.service.Load() == svc || had.server != nil && had.max == k.max) {
		had.service.Store(svc)
		s.setMode(had, k)
		return had
	}
	if had == nil && opened == nil {
		return nil
	}
	if had != nil { // datagrams belong to sessions of the old service, and a bound is the server's for good
		s.retire(had)
		var err error
		if opened, err = k.listen(); err != nil {
			s.n.log.Error("a socket could not be opened again; the next reload tries again", "at", k.where, "err", err)
			return nil
		}
	}
	sl := &slot{socket: k, opened: opened, served: make(chan struct{})}
	sl.service.Store(svc)
	switch c := opened.(type) {
	case net.Listener:
		sl.server = stream.NewServer(stream.ServerConfig{
			Name: k.key, Max: k.max, Logger: s.n.log,
			Handle: func(ctx context.Context, c net.Conn) { sl.service.Load().handle(ctx, c) },
		})
		s.wg.Go(func() { s.ended(sl, sl.server.Serve(c)) })
	case net.PacketConn:
		sl.packets = svc.packets
		s.wg.Go(func() { s.ended(sl, sl.packets.Serve(c)) })
	}
	return sl
}

// setMode gives the file of an open unix socket the mode that is wanted now.
func (s *services) setMode(sl *slot, k socket) {
	file, ok := sl.opened.(interface{ SetMode(fs.FileMode) error })
	if !ok || sl.mode == k.mode {
		return
	}
	if err := file.SetMode(k.mode); err != nil {
		s.n.log.Error("a socket keeps its mode; the next reload tries again", "at", k.where, "err", err)
		return
	}
	sl.mode = k.mode
}

// retire closes a socket whose address another takes. Its connections go on.
func (s *services) retire(sl *slot) {
	if sl.server == nil {
		sl.close()
		return
	}
	s.wg.Go(func() { sl.server.Shutdown(s.ctx) })
	<-sl.served
}

func (s *services) ended(sl *slot, err error) {
	close(sl.served)
	if err != nil {
		s.n.log.Error("a socket has failed", "at", sl.where, "err", err)
	}
}

// close ends what the socket carries. When it returns the address is free.
func (sl *slot) close() {
	if sl.server != nil {
		sl.server.Close()
	}
	if sl.packets != nil {
		sl.packets.Close()
	}
	<-sl.served
}

// drain stops accepting and waits until ctx ends for connections to finish.
func (s *services) drain(ctx context.Context) {
	s.n.mu.Lock()
	var wg sync.WaitGroup
	for _, sl := range s.slots {
		if sl.server != nil {
			wg.Go(func() { sl.server.Shutdown(ctx) })
		}
	}
	s.n.mu.Unlock()
	wg.Wait()
	if s.n.egress != nil {
		s.n.egress.Close() // what it has opened ahead is nobody's connection to wait for
	}
}

// closeAll ends all services, side by side.
func (s *services) closeAll() {
	s.n.mu.Lock()
	slots, list := s.slots, s.list
	s.slots, s.list = nil, nil
	s.n.mu.Unlock()
	s.cancel()
	var wg sync.WaitGroup
	for _, sl := range slots {
		wg.Go(sl.close)
	}
	wg.Wait()
	for _, o := range list {
		o.close()
	}
	s.wg.Wait()
}
