//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"tailscale.com/derp"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/interop/stock"
)

// client is one connection of the load generator. It connects with the stock packages and then moves frames by itself, as
// cheaply as it can, so that the server is what limits a measurement.
type client struct {
	key  wgkey.Public
	wire *coalescer
	tls  *tls.Conn
	in   *bufio.Reader
}

// readSize is how much a receiver takes at once: the largest TLS record.
const readSize = 16 << 10

// connect makes a client. Its reader stays small until receive is called, so that thousands of them fit.
func connect(ctx context.Context, s *server) (*client, error) {
	key, err := wgkey.NewPrivate()
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(s.url)
	if err != nil {
		return nil, err
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	c := &client{key: key.Public(), wire: &coalescer{Conn: raw}}
	c.tls = tls.Client(c.wire, &tls.Config{RootCAs: s.roots, ServerName: u.Hostname(), DynamicRecordSizingDisabled: true})
	if err := c.upgrade(ctx, s.url, key); err != nil {
		raw.Close()
		return nil, fmt.Errorf("connect to %s: %w", s.name, err)
	}
	return c, nil
}

// upgrade passes from TLS to DERP and reads up to the server's last word of the handshake.
func (c *client) upgrade(ctx context.Context, url string, key wgkey.Private) error {
	if deadline, ok := ctx.Deadline(); ok {
		c.wire.SetDeadline(deadline)
	}
	req, err := http.NewRequest(http.MethodGet, url+"/derp", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Upgrade", "DERP")
	req.Header.Set("Connection", "Upgrade")
	c.in = bufio.NewReaderSize(c.tls, 512)
	if err := req.Write(c.tls); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.in, req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("GET /derp: %s", resp.Status)
	}
	brw := bufio.NewReadWriter(c.in, bufio.NewWriter(c.tls))
	d, err := derp.NewClient(stock.NodePrivate(key), c.tls, brw, func(string, ...any) {})
	if err != nil {
		return err
	}
	if _, err := d.Recv(); err != nil { // ServerInfo
		return err
	}
	// Recv leaves the frame it returned in the reader: it begins with this frame's payload.
	return c.skipPeeked()
}

// skipPeeked takes the ServerInfo payload out of the reader and clears the deadlines.
func (c *client) skipPeeked() error {
	if n := c.in.Buffered(); n > 0 {
		if _, err := c.in.Discard(n); err != nil { // nobody knows this client yet: nothing else can have come
			return err
		}
	}
	return c.wire.SetDeadline(time.Time{})
}

// frame makes a SendPacket frame with an opaque packet of the size given. It has room for a stamp.
func frame(to wgkey.Public, size int) []byte {
	b := make([]byte, headerLen+size)
	b[0] = byte(derp.FrameSendPacket)
	binary.BigEndian.PutUint32(b[1:], uint32(len(to)+size))
	copy(b[5:], to[:])
	b[headerLen] = 4 // WireGuard's transport data: no relay takes it for a handshake
	return b
}

const (
	headerLen = 5 + 32
	stampAt   = headerLen + 16 // where the receiver finds a number of the sender's: behind WireGuard's header
)

// stamp writes a number of the sender's into a frame.
func stamp(frame []byte, n uint64) { binary.BigEndian.PutUint64(frame[stampAt:], n) }

// stampOf reads it from the packet that arrived.
func stampOf(packet []byte) uint64 { return binary.BigEndian.Uint64(packet[stampAt-headerLen:]) }

// hold makes put keep what it has encrypted until flush.
func (c *client) hold() { c.wire.hold = true }

// put encrypts one frame as one TLS record, as stock clients do.
func (c *client) put(frame []byte) error {
	_, err := c.tls.Write(frame)
	return err
}

func (c *client) flush() error { return c.wire.flush() }

func (c *client) close() { c.wire.Conn.Close() }

// receive calls fn with every packet and its sender until the connection ends.
func (c *client) receive(fn func(from wgkey.Public, packet []byte)) error {
	in := bufio.NewReaderSize(c.in, readSize+headerLen)
	for {
		head, err := in.Peek(5)
		if err != nil {
			return err
		}
		n := 5 + int(binary.BigEndian.Uint32(head[1:]))
		if n > in.Size() {
			return fmt.Errorf("frame of %d bytes", n)
		}
		b, err := in.Peek(n)
		if err != nil {
			return err
		}
		if derp.FrameType(b[0]) == derp.FrameRecvPacket && n >= headerLen {
			fn(wgkey.Public(b[5:headerLen]), b[headerLen:])
		}
		in.Discard(n)
	}
}

// coalescer gathers what TLS writes, record by record, into few system calls. The server still gets one record per frame.
type coalescer struct {
	net.Conn
	hold bool
	b    []byte
}

const coalesceLimit = 64 << 10

func (w *coalescer) Write(p []byte) (int, error) {
	if !w.hold {
		return w.Conn.Write(p)
	}
	w.b = append(w.b, p...)
	if len(w.b) >= coalesceLimit {
		return len(p), w.flush()
	}
	return len(p), nil
}

func (w *coalescer) flush() error {
	if len(w.b) == 0 {
		return nil
	}
	_, err := w.Conn.Write(w.b)
	w.b = w.b[:0]
	return err
}

// connectAll makes n clients, several at a time.
func connectAll(ctx context.Context, s *server, n int) (clients []*client, err error) {
	const atOnce = 16
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards the results
		slots = make(chan struct{}, atOnce)
	)
	for range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c, e := connect(ctx, s)
			mu.Lock()
			defer mu.Unlock()
			if e != nil {
				err = e
				return
			}
			clients = append(clients, c)
		})
	}
	wg.Wait()
	if err != nil {
		closeAll(clients)
		return nil, err
	}
	return clients, nil
}

func closeAll(clients []*client) {
	for _, c := range clients {
		c.close()
	}
}
