package netstack

import (
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// A connection at rest waits for the host's side; for the peer's gVisor does.
func TestIdleConnectionNeedsOneGoroutine(t *testing.T) {
	const count = 40
	n := newTestNet(t, testPolicy(t, nil))
	to := listen(t, hostAddr(t), func(c *net.TCPConn) {
		io.Copy(c, c)
		c.Close()
	})
	w := newWire(n)
	goroutines := func() int {
		buf := make([]byte, 4<<20)
		return strings.Count(string(buf[:runtime.Stack(buf, true)]), "netstack.(*splice)")
	}
	for i := range count {
		c := &bareTCP{t: t, w: w, from: ap(peerV4, uint16(1000+i)), to: to, seq: 100}
		c.open()
		c.send(packet.TCPAck|packet.TCPPsh, "x")
		if _, data := c.next(); data != "x" {
			t.Fatalf("echo of %q", data)
		}
		c.send(packet.TCPAck, "")
	}
	waitFor(t, "rest", func() bool { return goroutines() == count })
}
