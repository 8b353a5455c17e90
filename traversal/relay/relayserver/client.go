package relayserver

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// Transport is how a client is connected.
type Transport uint8

// The transports.
const (
	TransportDERP      Transport = iota // HTTP upgrade
	TransportFastStart                  // HTTP upgrade without an answer
	TransportWebSocket
)

// String returns the name that status shows.
func (t Transport) String() string {
	switch t {
	case TransportFastStart:
		return "fast-start"
	case TransportWebSocket:
		return "websocket"
	default:
		return "derp"
	}
}

// ending is why a client was disconnected.
type ending uint32

const (
	endedByClient   ending = iota // it closed, or the network did
	endedByWrite                  // writing failed
	endedSlow                     // it did not read
	endedSilent                   // it answered no ping
	endedProtocol                 // it sent nonsense
	endedNotAllowed               // Recheck
	endedByClose
)

func (e ending) String() string {
	switch e {
	case endedByWrite:
		return "write failed"
	case endedSlow:
		return "reads too slowly"
	case endedSilent:
		return "does not answer"
	case endedProtocol:
		return "protocol error"
	case endedNotAllowed:
		return "not allowed any more"
	case endedByClose:
		return "relay stops"
	default:
		return "left"
	}
}

// client is one connection that has proven its key. One goroutine reads from it (read.go), another one writes to it while there is
// something to write (write.go).
type client struct {
	srv       *Server
	key       wgkey.Public
	slot      *slot
	from      netip.Addr
	transport Transport
	info      derp.ClientInfo
	since     time.Time

	generation int64        // of Admit, when it was asked
	conn       net.Conn     // TLS, TCP or WebSocket
	tcp        *net.TCPConn // conn, if that is plain TCP: written to by writev
	abort      func()       // closes the connection below conn at once
	out        outbox
	wakeup     chan bool // to the writer: true look, false end
	done       chan struct{}
	ended      atomic.Bool
	why        ending // valid once done is closed
	counted    bool   // in Server.left; guarded by Server.mu

	preferred  atomic.Bool
	packetsIn  atomic.Uint64 // packets
	bytesIn    atomic.Uint64 // of all frames
	packetsOut atomic.Uint64
	bytesOut   atomic.Uint64
	lastRead   atomic.Int64
	lastWrite  atomic.Int64
	writing    atomic.Int64 // since when the writer is inside a write; 0: it is not

	// Of housekeeping only.
	nextAlive  int64 // when the next keepalive is due
	lastAlive  int64 // when the last one was sent
	unanswered int   // keepalives in a row
	stuckSince int64 // the last value of writing
	stuckSeen  int   // how often
}

// control queues a frame of the relay's own.
func (c *client) control(t derp.Type, payload []byte) {
	if wake, _ := c.out.put(true, nil, t, nil, payload); wake {
		c.wake()
	}
}

// kill ends the client: its reader returns, and does the rest.
func (c *client) kill(why ending) {
	if !c.ended.CompareAndSwap(false, true) {
		return
	}
	c.why = why
	close(c.done)
	if c.out.close() {
		c.wakeup <- false
	}
	c.abort()
}

// gone tells a client that a peer cannot be reached.
func (c *client) gone(peer wgkey.Public, why derp.GoneReason) {
	var b [derp.KeyLen + 1]byte
	copy(b[:], peer[:])
	b[derp.KeyLen] = byte(why)
	c.control(derp.FramePeerGone, b[:])
}
