package netstack

import (
	"bytes"
	"io"
	"net"
	"reflect"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A peer begins many downloads and takes nothing: what the node holds for it is bounded, and the ones that are read after all are whole.
func TestUnsentIsBounded(t *testing.T) {
	host := hostAddr(t)
	n := newTestNet(t, testPolicy(t, nil))
	n.unsent.most = 1 << 20
	p := newTestPeer(t, n)
	data := randomBytes(3 << 20)
	to := listen(t, host, func(c *net.TCPConn) {
		c.Write(data)
		c.Close()
	})
	const conns = 40
	var mine [conns]*gonet.TCPConn
	for i := range mine {
		c, err := p.dial(t, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		mine[i] = c
	}
	waitFor(t, "all to wait for room", func() bool { return n.unsent.stuck.Load() == conns })
	var held int64
	for _, e := range n.stack.RegisteredEndpoints() {
		if ep, ok := e.(*tcp.Endpoint); ok {
			ep.LockUser()
			held += reflect.ValueOf(ep).Elem().FieldByName("sndQueueInfo").FieldByName("SndBufUsed").Int()
			ep.UnlockUser()
		}
	}
	t.Logf("%d KiB are held", held>>10)
	// Those that begin while few wait have more than those that come later.
	if most := 12 * n.unsent.most; held > most {
		t.Errorf("%d KiB are held for %d downloads, want at most %d", held>>10, conns, most>>10)
	}
	if held < n.unsent.most/2 {
		t.Errorf("only %d KiB are held: nothing was tested", held>>10)
	}
	for i, c := range mine[:4] {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
			t.Errorf("download %d: %d bytes, %v", i, len(got), err)
		}
	}
}
