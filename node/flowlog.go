package node

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

// flowLog writes a JSON line for each flow that ends and for each packet that policy refuses. The packet path only appends to a
// bounded list; one goroutine writes. What does not fit is counted, and the file says so.
type flowLog struct {
	log     *slog.Logger
	names   *flowNames
	net     *netstack.Net
	stop    func() // ends the observation of flows
	wake    chan struct{}
	reopen  chan io.WriteCloser
	closing chan struct{}
	closed  chan struct{}
	lostAll *atomic.Uint64 // lines, since the node started

	denials denialLimit

	mu      sync.Mutex // guards the following
	file    io.WriteCloser
	pending []flowLine
	lost    uint64 // lines that found the list full since the last batch
}

// flowLine is a line to be: one of the two is set.
type flowLine struct {
	end    netstack.FlowEvent
	denial *denial
}

type denial struct {
	at      time.Time
	key     packet.Key
	action  filter.Action
	reason  filter.Reason
	rule    *filter.Rule // nil: built in
	skipped uint64       // denials before this one that were over the limit
}

const (
	maxPendingLines = 65536       // as many as flows can end at once
	farewell        = time.Second // for a pipe whose reader does not read, when it is given up
)

// openFlowLog opens the file for appending. It makes it with mode 0600 and does not wait for the reader of a pipe.
func openFlowLog(c config.Control, file string) (io.WriteCloser, error) {
	if c.FlowLog == config.FlowLogStderr {
		return unclosed{os.Stderr}, nil
	}
	f, err := os.OpenFile(c.FlowLog, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: [Control] FlowLog: %w", file, err)
	}
	return f, nil
}

// unclosed is a file that belongs to somebody else.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// startFlowLog begins to log to w, which it owns.
func startFlowLog(w io.WriteCloser, n *Node) *flowLog {
	net := n.net
	l := &flowLog{
		log: n.log, names: &n.names, net: net, lostAll: &n.flowLogLoss, wake: make(chan struct{}, 1),
		reopen: make(chan io.WriteCloser), closing: make(chan struct{}), closed: make(chan struct{}), file: w,
	}
	go l.run(w)
	l.stop = net.ObserveFlows(func(e netstack.FlowEvent) { l.add(flowLine{end: e}) }, nat.EventDestroy)
	net.ObserveDenied(l.denied)
	return l
}

// use continues in w, which is the same file opened anew, or another.
func (l *flowLog) use(w io.WriteCloser) {
	l.hurry()
	l.reopen <- w
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file = w
}

// hurry bounds what is still written to the file in use, as far as that can block for long.
func (l *flowLog) hurry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.file.(*os.File); ok {
		f.SetWriteDeadline(time.Now().Add(farewell)) // fails for a regular file, which needs none
	}
}

// close writes what is pending and ends the log.
func (l *flowLog) close() {
	l.net.ObserveDenied(nil)
	l.stop()
	l.hurry()
	close(l.closing)
	<-l.closed
}

// denied is called on the packet path.
func (l *flowLog) denied(k *packet.Key, d *filter.Decision, now int64) {
	skipped, ok := l.denials.take(now)
	if ok {
		l.add(flowLine{denial: &denial{at: time.Now(), key: *k, action: d.Action, reason: d.Reason, rule: d.Rule, skipped: skipped}})
	}
}

func (l *flowLog) add(line flowLine) {
	l.mu.Lock()
	if len(l.pending) >= maxPendingLines {
		l.lost++
		l.mu.Unlock()
		return
	}
	l.pending = append(l.pending, line)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *flowLog) take() (batch []flowLine, lost uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch, lost = l.pending, l.lost
	l.pending, l.lost = nil, 0
	return batch, lost
}

func (l *flowLog) run(w io.WriteCloser) {
	defer close(l.closed)
	out := &flowLogFile{w: w, flowLog: l}
	for {
		select {
		case <-l.wake:
			out.write(l.take())
		case next := <-l.reopen:
			out.write(l.take())
			out.w.Close()
			out = &flowLogFile{w: next, flowLog: l}
		case <-l.closing:
			out.write(l.take())
			out.w.Close()
			return
		}
	}
}

// denialLimit keeps a peer from filling the disk with what it is refused.
type denialLimit struct {
	mu      sync.Mutex // guards the following
	tokens  float64
	last    int64
	skipped uint64
}

const (
	denialRate  = 20 // lines per second
	denialBurst = 100
)

// take reports whether one more denial may be logged, and how many were not since the last one that was.
func (d *denialLimit) take(now int64) (skipped uint64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last == 0 {
		d.tokens = denialBurst
	}
	if now > d.last {
		d.tokens = min(denialBurst, d.tokens+float64(now-d.last)*denialRate/1e9)
		d.last = now
	}
	if d.tokens < 1 {
		d.skipped++
		return 0, false
	}
	d.tokens--
	skipped, d.skipped = d.skipped, 0
	return skipped, true
}
