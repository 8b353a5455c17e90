package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

const (
	// readTimeout is how long a relay may be silent: it sends a frame each minute even if nothing happens.
	readTimeout = 120 * time.Second

	// maxHealth is how much of a Health text is kept, in bytes.
	maxHealth = 256
)

// MessageKind says what a Message is.
type MessageKind uint8

// Kinds of messages.
const (
	MessagePacket     MessageKind = iota // Peer sent Packet
	MessageGone                          // Peer is gone, for Reason
	MessageHealth                        // the relay reports a problem in Text, or with an empty one that it is over
	MessageRestarting                    // the relay goes away: connect again after ReconnectIn, and try for TryFor
)

// Message is what Recv returns. Which fields are valid depends on Kind.
type Message struct {
	Kind        MessageKind
	Peer        wgkey.Public
	Packet      []byte // until the next Recv
	Reason      derp.GoneReason
	Text        string
	ReconnectIn time.Duration
	TryFor      time.Duration
}

// Recv waits for the next message. What needs none, it handles itself: it answers pings, takes in pongs and changed limits, and
// skips frames it does not know. The error is net.ErrClosed after Close, else why the connection is over; it is final.
func (c *Conn) Recv() (Message, error) {
	for {
		t, payload, err := c.frames.Next()
		if err != nil {
			return Message{}, c.reason(readError(err))
		}
		if t == derp.FrameRecvPacket && len(payload) >= derp.KeyLen {
			c.packetsIn.Add(1)
			c.bytesIn.Add(uint64(len(payload) - derp.KeyLen))
			return Message{Kind: MessagePacket, Peer: wgkey.Public(payload[:derp.KeyLen]), Packet: payload[derp.KeyLen:]}, nil
		}
		m, ok, err := c.receive(t, payload)
		if err != nil {
			return Message{}, c.reason(err)
		}
		if ok {
			return m, nil
		}
	}
}

// receive handles a frame other than a packet; ok if there is a message in it.
func (c *Conn) receive(t derp.Type, payload []byte) (m Message, ok bool, err error) {
	switch t {
	case derp.FramePing:
		echo, err := derp.ParsePing(payload)
		if err != nil {
			return m, false, err
		}
		c.out.control(derp.FramePong, echo[:])
	case derp.FramePong:
		c.pings.answered(payload, c.in.lastRead())
	case derp.FrameServerInfo:
		return m, false, c.serverInfo(payload)
	case derp.FramePeerGone:
		m.Kind = MessageGone
		m.Peer, m.Reason, err = derp.ParsePeerGone(payload)
		return m, true, err
	case derp.FrameHealth:
		m.Kind, m.Text = MessageHealth, printable(payload)
		return m, true, nil
	case derp.FrameRestarting:
		m.Kind = MessageRestarting
		m.ReconnectIn, m.TryFor, err = derp.ParseRestarting(payload)
		return m, true, err
	}
	return m, false, nil
}

// printable makes a text of the relay's fit for logs.
func printable(b []byte) string {
	if len(b) > maxHealth {
		b = b[:maxHealth]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
}

// readError says why nothing more can be read.
func readError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("silent for %v", readTimeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("closed by the relay")
	}
	return fmt.Errorf("receive: %w", err)
}

// activity reads a stream, ends it when it is silent for too long, and knows when something came last and whether something was
// sent since. It reads the clock once per read of the stream.
type activity struct {
	stream  net.Conn
	guarded bool
	dueAt   time.Time // deadline that is set

	begin  time.Time
	read   atomic.Int64 // when something came last, in ns since begin
	unread atomic.Int64 // when the first packet since then was sent, 0 if none was
}

func newActivity(stream net.Conn) *activity { return &activity{stream: stream, begin: time.Now()} }

// guard begins to set deadlines. Not to be called during a Read.
func (a *activity) guard() { a.guarded = true }

// Read implements io.Reader.
func (a *activity) Read(b []byte) (int, error) {
	if a.guarded {
		// Often enough is once in a while: setting a deadline costs more than reading the clock.
		due := a.begin.Add(time.Duration(a.read.Load()) + readTimeout)
		if due.Sub(a.dueAt) > readTimeout/16 {
			a.dueAt = due
			a.stream.SetReadDeadline(due)
		}
	}
	n, err := a.stream.Read(b)
	if n > 0 {
		a.read.Store(int64(time.Since(a.begin)))
		a.unread.Store(0)
	}
	return n, err
}

// sent notes that packets were sent, and reports whether they are the first since something came in.
func (a *activity) sent() bool {
	if a.unread.Load() != 0 {
		return false
	}
	return a.unread.CompareAndSwap(0, max(1, int64(time.Since(a.begin))))
}

// lastRead returns when something came last.
func (a *activity) lastRead() time.Time { return a.begin.Add(time.Duration(a.read.Load())) }

// waitingSince returns since when packets are sent with nothing coming in; zero if none are.
func (a *activity) waitingSince() time.Time {
	if n := a.unread.Load(); n != 0 {
		return a.begin.Add(time.Duration(n))
	}
	return time.Time{}
}
