//go:build linux

package load

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Line carries UDP datagrams between one client and one server, both ways, each direction after a delay and in order. Runs
// of datagrams that the kernel has joined stay joined. The client is whoever has sent last; the server sees the line as its
// peer. Delays are exact to a few tenths of a millisecond as long as the machine has time for the line.
type Line struct {
	Listen string        // address and port for the client; port 0 is one that the system chooses
	To     string        // the server's address and port
	Delay  time.Duration // one way
	Queue  int           // bytes under way in one direction; what exceeds them is dropped; zero: 256 MiB
}

// LineResult is what a line has carried.
type LineResult struct {
	DelayMillis float64   `json:"delay_ms"` // one way
	Up          LineCount `json:"up"`       // to the server
	Down        LineCount `json:"down"`     // to the client
	Dropped     int64     `json:"dropped"`  // for whatever reason: a line that drops is more than a delay
}

// LineCount is one direction's.
type LineCount struct {
	Packets     int64 `json:"packets"` // that arrived
	Bytes       int64 `json:"bytes"`
	Messages    int64 `json:"messages"`     // joined ones are one
	QueueDrops  int64 `json:"queue_drops"`  // packets that found the queue full
	SocketDrops int64 `json:"socket_drops"` // messages that the line was too slow for
	SendErrors  int64 `json:"send_errors"`  // packets that could not go on: the kernel refused them, or there is no client yet
	QueuedMost  int64 `json:"queued_bytes_most"`
	// LateMost is how much later than due a message left, at most, in milliseconds.
	LateMost float64 `json:"late_ms_most"`
}

// RunningLine is a line in use. Its methods may be called by several goroutines.
type RunningLine struct {
	line             Line
	clients, servers *datagramSocket
	up, down         *way
	running          sync.WaitGroup
	closing          sync.Once
}

// Start opens the sockets and begins to carry.
func (l Line) Start() (*RunningLine, error) {
	if l.Queue == 0 {
		l.Queue = 256 << 20
	}
	if l.Queue < 0 || l.Delay < 0 {
		return nil, errors.New("line: delay and queue are not negative")
	}
	listen, err := target(l.Listen)
	if err != nil {
		return nil, fmt.Errorf("line: %w", err)
	}
	to, err := target(l.To)
	if err != nil {
		return nil, fmt.Errorf("line: %w", err)
	}
	r := &RunningLine{line: l}
	if err := r.open(listen, to); err != nil {
		r.Close()
		return nil, fmt.Errorf("line to %v: %w", to, err)
	}
	for _, w := range []*way{r.up, r.down} {
		r.running.Go(w.read)
		r.running.Go(w.write)
	}
	return r, nil
}

func (r *RunningLine) open(listen, to netip.AddrPort) (err error) {
	if r.clients, err = openSocket(listen, netip.AddrPort{}); err != nil {
		return err
	}
	if r.servers, err = openSocket(netip.AddrPort{}, to); err != nil {
		return err
	}
	client := new(atomic.Pointer[peerName])
	if r.up, err = newWay(r.line, r.clients, r.servers); err != nil {
		return err
	}
	r.up.heard = client
	if r.down, err = newWay(r.line, r.servers, r.clients); err != nil {
		return err
	}
	r.down.name = client
	return nil
}

// Addr is where the client sends to.
func (r *RunningLine) Addr() netip.AddrPort { return r.clients.addr() }

// Result is what was carried so far. After Close it lacks the sockets' own drops.
func (r *RunningLine) Result() LineResult {
	result := LineResult{DelayMillis: millis(r.line.Delay), Up: r.up.result(), Down: r.down.result()}
	for _, c := range []LineCount{result.Up, result.Down} {
		result.Dropped += c.QueueDrops + c.SocketDrops + c.SendErrors
	}
	return result
}

// Close ends the line; what is under way is lost.
func (r *RunningLine) Close() {
	r.closing.Do(func() {
		for _, s := range []*datagramSocket{r.clients, r.servers} {
			if s != nil {
				s.conn.Close()
			}
		}
		for _, w := range []*way{r.up, r.down} {
			if w != nil {
				w.queue.close()
			}
		}
		r.running.Wait()
		for _, w := range []*way{r.up, r.down} {
			if w != nil {
				w.slots.unmap()
			}
		}
	})
}
