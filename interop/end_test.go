package interop

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/interop/stock"
	"culvert.dev/culvert/traversal/relay"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// event is something a client has received, told alike by both kinds of clients.
type event struct {
	kind   string // packet, gone, keepalive, health, restarting, info
	from   wgkey.Public
	data   string        // of a packet; the text of health
	reason int           // of gone
	in     time.Duration // of restarting: until the client may connect again
	rate   int           // of info: bytes per second
}

// end is a client of a relay, ours or the stock one.
type end struct {
	key    wgkey.Public
	send   func(to wgkey.Public, packet []byte) error
	ping   func(context.Context) error
	close  func()
	events chan event
	rate   int // bytes per second that the relay announced; of stock clients
}

// dialFunc connects a client with a key of its own to a relay.
type dialFunc func(context.Context, place, wgkey.Private) (*end, error)

const stockWebSocket = "stock websocket"

// kinds are the clients that every relay is tried with.
var kinds = []struct {
	name string
	dial dialFunc
}{
	{"culvert fast-start", culvertDialer(relay.TransportFastStart)},
	{"culvert upgrade", culvertDialer(relay.TransportDERP)},
	{"culvert websocket", culvertDialer(relay.TransportWebSocket)},
	{"stock fast-start", dialStock(stock.FastStart)},
	{"stock upgrade", dialStock(stock.Upgrade)},
	{stockWebSocket, dialStockWebSocket},
}

// connect dials and closes the client with the test.
func connect(t *testing.T, p place, dial dialFunc) *end {
	t.Helper()
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return connectAs(t, p, key, dial)
}

func connectAs(t *testing.T, p place, key wgkey.Private, dial dialFunc) *end {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	e, err := dial(ctx, p, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	return e
}

// want waits for the next event of a kind and returns it; others are passed over. what is for the message of a failure.
func (e *end) want(t *testing.T, kind string, what ...any) event {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case ev, ok := <-e.events:
			if !ok {
				t.Fatalf("connection ended before %q came %v", kind, what)
			}
			if ev.kind == kind {
				return ev
			}
		case <-timer.C:
			t.Fatalf("no %q in %v %v", kind, patience, what)
		}
	}
}

// ended waits until the client has lost its connection.
func (e *end) ended(t *testing.T) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case _, ok := <-e.events:
			if !ok {
				return
			}
		case <-timer.C:
			t.Fatalf("the connection still stands after %v", patience)
		}
	}
}

// collector passes events on until close.
type collector struct {
	events chan event
	stop   chan struct{}
	once   sync.Once
	done   sync.WaitGroup
}

// collect runs next in a goroutine until it returns an error. Events that nobody takes make it wait.
func collect(next func() (event, error)) *collector {
	c := &collector{events: make(chan event, 64), stop: make(chan struct{})}
	c.done.Go(func() {
		defer close(c.events)
		for {
			ev, err := next()
			if err != nil {
				return
			}
			select {
			case c.events <- ev:
			case <-c.stop:
				return
			}
		}
	})
	return c
}

func (c *collector) end(closeConn func()) func() {
	return func() {
		c.once.Do(func() { close(c.stop) })
		closeConn()
		c.done.Wait()
	}
}

// culvertDialer connects our client and makes sure that it came by the transport wanted.
func culvertDialer(by relay.Transport) dialFunc {
	return func(ctx context.Context, p place, key wgkey.Private) (*end, error) {
		d := relay.Dialer{Key: key, Roots: p.roots}
		s := relay.Server{URL: p.url, Proxy: "none", WebSocket: relay.WebSocketNever}
		switch by {
		case relay.TransportWebSocket:
			s.WebSocket = relay.WebSocketAlways
		case relay.TransportDERP:
			if p.behind != "" {
				s.URL = p.behind // there is no metacert, hence no fast start
			}
		}
		c, err := d.Dial(ctx, s)
		if err != nil {
			return nil, err
		}
		if got := c.Info().Transport; got != by {
			c.Close()
			return nil, fmt.Errorf("connected by %v, want %v", got, by)
		}
		return culvertEnd(key.Public(), c), nil
	}
}

func culvertEnd(key wgkey.Public, c *relay.Conn) *end {
	in := collect(func() (event, error) {
		m, err := c.Recv()
		if err != nil {
			return event{}, err
		}
		switch m.Kind {
		case relay.MessagePacket:
			return event{kind: "packet", from: m.Peer, data: string(m.Packet)}, nil
		case relay.MessageGone:
			return event{kind: "gone", from: m.Peer, reason: int(m.Reason)}, nil
		case relay.MessageHealth:
			return event{kind: "health", data: m.Text}, nil
		case relay.MessageRestarting:
			return event{kind: "restarting", in: m.ReconnectIn}, nil
		}
		return event{}, fmt.Errorf("message of kind %d", m.Kind)
	})
	return &end{
		key:    key,
		events: in.events,
		send:   func(to wgkey.Public, packet []byte) error { return c.Send(to, [][]byte{packet}) },
		ping:   func(ctx context.Context) error { _, err := c.Ping(ctx); return err },
		close:  in.end(func() { c.Close() }),
	}
}

// dialStock connects derphttp's client. It would connect again by itself, so that its collector stops at the first error.
func dialStock(mode stock.Mode) dialFunc {
	return func(ctx context.Context, p place, key wgkey.Private) (*end, error) {
		c, err := stock.Dial(ctx, stock.ClientConfig{Key: key, URL: p.url, Roots: p.roots, Mode: mode})
		if err != nil {
			return nil, err
		}
		return stockEnd(key.Public(), c).accepted(ctx)
	}
}

// accepted waits for the relay's last word of the handshake, for which the stock client does not: only then can others
// send to this one.
func (e *end) accepted(ctx context.Context) (*end, error) {
	select {
	case ev, ok := <-e.events:
		if ok && ev.kind == "info" {
			e.rate = ev.rate
			return e, nil
		}
		e.close()
		return nil, fmt.Errorf("the connection starts with %q, want info", ev.kind)
	case <-ctx.Done():
		e.close()
		return nil, ctx.Err()
	}
}

func stockEnd(key wgkey.Public, c *derphttp.Client) *end {
	in := collect(func() (event, error) { return stockEvent(c.Recv()) })
	return &end{
		key:    key,
		events: in.events,
		send:   func(to wgkey.Public, packet []byte) error { return c.Send(stock.NodePublic(to), packet) },
		ping:   c.Ping,
		close:  in.end(func() { c.Close() }),
	}
}

func dialStockWebSocket(ctx context.Context, p place, key wgkey.Private) (*end, error) {
	c, conn, err := stock.DialWebSocket(ctx, stock.ClientConfig{Key: key, URL: p.url, Roots: p.roots, Mode: stock.WebSocket})
	if err != nil {
		return nil, err
	}
	return rawEnd(key.Public(), c, func() { conn.Close() }).accepted(ctx)
}

// rawEnd is an end over derp.Client, which knows no ping by itself.
func rawEnd(key wgkey.Public, c *derp.Client, closeConn func()) *end {
	pong := make(chan struct{}, 1)
	in := collect(func() (event, error) {
		for {
			m, err := c.Recv()
			if _, ok := m.(derp.PongMessage); ok && err == nil {
				select {
				case pong <- struct{}{}:
				default:
				}
				continue
			}
			return stockEvent(m, err)
		}
	})
	return &end{
		key:    key,
		events: in.events,
		send:   func(to wgkey.Public, packet []byte) error { return c.Send(stock.NodePublic(to), packet) },
		ping: func(ctx context.Context) error {
			if err := c.SendPing([8]byte{1, 2, 3, 4, 5, 6, 7, 8}); err != nil {
				return err
			}
			select {
			case <-pong:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		close: in.end(closeConn),
	}
}

func stockEvent(m derp.ReceivedMessage, err error) (event, error) {
	if err != nil {
		return event{}, err
	}
	switch m := m.(type) {
	case derp.ReceivedPacket:
		return event{kind: "packet", from: stock.Public(m.Source), data: string(m.Data)}, nil
	case derp.PeerGoneMessage:
		return event{kind: "gone", from: stock.Public(m.Peer), reason: int(m.Reason)}, nil
	case derp.KeepAliveMessage:
		return event{kind: "keepalive"}, nil
	case derp.HealthMessage:
		return event{kind: "health", data: m.Problem}, nil
	case derp.ServerRestartingMessage:
		return event{kind: "restarting", in: m.ReconnectIn}, nil
	case derp.ServerInfoMessage:
		return event{kind: "info", rate: m.TokenBucketBytesPerSecond}, nil
	case derp.PingMessage:
		return event{kind: "ping"}, nil
	}
	return event{}, errors.New("unknown message of the stock client")
}
