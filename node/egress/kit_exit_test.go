package egress

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// exitHost is a peer with a real SOCKS5 server.
type exitHost struct {
	w       *world
	name    string
	server  *proxy.Server
	mu      sync.Mutex // guards the following
	targets []proxy.Target
	lasting []net.Conn // open connections of clients
}

// exit adds a peer that serves SOCKS5 at its address.
func (w *world) exit(name, addr string) *exitHost {
	x := &exitHost{w: w, name: name}
	at := netip.AddrPortFrom(netip.MustParseAddr(addr), exitPort)
	pc, err := w.ListenPacket(at)
	if err != nil {
		w.t.Fatal(err)
	}
	x.server, err = proxy.New(proxy.Config{Name: name, SOCKS: true, UDP: true, Dialer: x, PacketConn: pc, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(func() {
		cancel()
		x.server.Close()
	})
	w.mu.Lock()
	w.peers[name] = append(w.peers[name], at.Addr())
	w.mu.Unlock()
	w.listen(at.String(), func(c net.Conn) {
		x.mu.Lock()
		x.lasting = append(x.lasting, c)
		x.mu.Unlock()
		x.server.ServeConn(ctx, c)
	})
	return x
}

// asked returns the targets that the exit was asked for.
func (x *exitHost) asked() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var list []string
	for _, t := range x.targets {
		list = append(list, t.String())
	}
	return list
}

// cut closes the connections of clients.
func (x *exitHost) cut() {
	x.mu.Lock()
	list := x.lasting
	x.lasting = nil
	x.mu.Unlock()
	for _, c := range list {
		c.Close()
	}
}

// Dial implements proxy.Dialer: the first label of the name says what becomes of it.
func (x *exitHost) Dial(ctx context.Context, r *proxy.Request) (net.Conn, error) {
	x.mu.Lock()
	x.targets = append(x.targets, r.Target)
	x.mu.Unlock()
	switch r.Target.Name {
	case "refused.example":
		return nil, proxy.Fail(proxy.Refused, "refused")
	case "denied.example":
		return nil, proxy.Fail(proxy.NotAllowed, "not allowed")
	case "nowhere.example":
		return nil, proxy.Fail(proxy.NameNotFound, "no such name")
	case "broken.example":
		return nil, proxy.Fail(proxy.General, "out of order")
	case "slow.example":
		select {
		case <-time.After(10 * time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	near, far := net.Pipe()
	go func() {
		io.WriteString(far, x.name+"\n")
		echo(far)
	}()
	return near, nil
}

// ListenPacket implements proxy.Dialer: each datagram comes back with the exit's name in front, from 192.0.2.1 if it was for a name.
func (x *exitHost) ListenPacket(context.Context, *proxy.Request) (proxy.PacketConn, error) {
	return &exitEcho{x: x, in: make(chan heard, 64), ended: make(chan struct{})}, nil
}

type heard struct {
	b    []byte
	from proxy.Target
}

type exitEcho struct {
	x     *exitHost
	in    chan heard
	once  sync.Once
	ended chan struct{}
}

func (e *exitEcho) ReadFrom(b []byte) (int, proxy.Target, error) {
	select {
	case h := <-e.in:
		return copy(b, h.b), h.from, nil
	case <-e.ended:
		return 0, proxy.Target{}, net.ErrClosed
	}
}

func (e *exitEcho) WriteTo(b []byte, to proxy.Target) error {
	e.x.mu.Lock()
	e.x.targets = append(e.x.targets, to)
	e.x.mu.Unlock()
	if to.Name != "" {
		to = proxy.Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: to.Port}
	}
	e.in <- heard{append([]byte(e.x.name+":"), b...), to}
	return nil
}

func (e *exitEcho) Close() error {
	e.once.Do(func() { close(e.ended) })
	return nil
}
