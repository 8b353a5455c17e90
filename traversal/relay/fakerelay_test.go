package relay

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

func newKey(t testing.TB) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// fakeRelay is a small relay over any connection, which can also misbehave. It is plain and slow on purpose.
type fakeRelay struct {
	key  wgkey.Private
	info derp.ServerInfo

	// script, if set, takes over after the HTTP request: rest holds what came behind it.
	script func(c net.Conn, r *http.Request, rest *bufio.Reader)
	silent atomic.Bool // answers no pings
	refuse bool        // admits nobody
	onPing func()      // called for each ping

	mu        sync.Mutex
	clients   map[wgkey.Public]*fakeClient
	preferred map[wgkey.Public]bool
	packets   []fakePacket // all that clients sent
	fast      int          // connections by fast start
}

type fakePacket struct {
	from, to wgkey.Public
	data     string
}

type fakeClient struct {
	key wgkey.Public
	mu  sync.Mutex
	c   net.Conn
}

func newFakeRelay(t testing.TB) *fakeRelay {
	return &fakeRelay{
		key: newKey(t), info: derp.ServerInfo{Version: derp.Version},
		clients: map[wgkey.Public]*fakeClient{}, preferred: map[wgkey.Public]bool{},
	}
}

// serve is one connection, from the HTTP request on.
func (f *fakeRelay) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	request, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	switch {
	case f.script != nil:
		f.script(c, request, r)
		return
	case request.URL.Path != derp.Path || !strings.EqualFold(request.Header.Get("Upgrade"), derp.UpgradeProtocol):
		io.WriteString(c, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
		return
	case request.Header.Get(derp.HeaderFastStart) != "1":
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\nDerp-Public-Key: %s\r\n\r\n", f.key.Public().Hex())
	default:
		f.mu.Lock()
		f.fast++
		f.mu.Unlock()
	}
	f.derp(c, r)
}

// derp is one connection after the upgrade.
func (f *fakeRelay) derp(c net.Conn, r io.Reader) {
	c.Write(derp.AppendFrame(nil, derp.FrameServerKey, derp.ServerKeyPayload(f.key.Public())))
	frames := derp.NewReader(r, 1<<20)
	kind, payload, err := frames.Next()
	if err != nil || kind != derp.FrameClientInfo {
		return
	}
	key, _, err := derp.OpenClientInfo(f.key, payload)
	if err != nil || f.refuse {
		return
	}
	me := &fakeClient{key: key, c: c}
	f.mu.Lock()
	f.clients[key] = me
	f.mu.Unlock()
	defer f.left(me)
	info, err := derp.SealServerInfo(f.key, key, f.info)
	if err != nil {
		return
	}
	me.write(derp.FrameServerInfo, info)
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return
		}
		f.handle(me, kind, payload)
	}
}

func (f *fakeRelay) left(me *fakeClient) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clients[me.key] == me {
		delete(f.clients, me.key)
	}
}

func (c *fakeClient) write(t derp.Type, parts ...[]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.c.Write(derp.AppendFrame(nil, t, parts...))
}

func (f *fakeRelay) handle(me *fakeClient, kind derp.Type, payload []byte) {
	switch kind {
	case derp.FramePing:
		if f.onPing != nil {
			f.onPing()
		}
		if !f.silent.Load() {
			me.write(derp.FramePong, payload[:derp.PingLen])
		}
	case derp.FrameNotePreferred:
		f.mu.Lock()
		f.preferred[me.key] = payload[0] == 1
		f.mu.Unlock()
	case derp.FrameSendPacket:
		to, data := wgkey.Public(payload[:derp.KeyLen]), payload[derp.KeyLen:]
		f.mu.Lock()
		f.packets = append(f.packets, fakePacket{me.key, to, string(data)})
		peer := f.clients[to]
		f.mu.Unlock()
		if peer != nil {
			peer.write(derp.FrameRecvPacket, me.key[:], data)
		} else if isUrgent(data) {
			me.write(derp.FramePeerGone, to[:], []byte{byte(derp.GoneNotHere)})
		}
	}
}

// tell sends a frame to a client.
func (f *fakeRelay) tell(to wgkey.Public, t derp.Type, payload []byte) {
	f.mu.Lock()
	c := f.clients[to]
	f.mu.Unlock()
	if c != nil {
		c.write(t, payload)
	}
}

func (f *fakeRelay) connected() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.clients)
}

func (f *fakeRelay) isHomeOf(k wgkey.Public) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.preferred[k]
}

// sentTo returns what clients sent to a key by this relay.
func (f *fakeRelay) sentTo(k wgkey.Public) (data []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.packets {
		if p.to == k {
			data = append(data, p.data)
		}
	}
	return data
}

// restarting is a Restarting frame's payload.
func restarting(in, try time.Duration) []byte {
	return derp.AppendRestarting(nil, in, try)[derp.HeaderLen:]
}

// initiation looks like WireGuard's first message, told apart by a number.
func initiation(n byte) []byte {
	b := make([]byte, 148)
	b[0], b[147] = 1, n
	return b
}

// disco looks like a packet of the search for a path.
func disco() []byte { return append([]byte("TS\xf0\x9f\x92\xac"), make([]byte, 80)...) }
