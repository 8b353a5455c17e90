package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"

	"culvert.dev/culvert/netstack"
)

// PingEvent is one line of "culvert ping --json". Names and meaning of its fields stay; fields may be added.
type PingEvent struct {
	Event    string     `json:"event"` // "start", "reply", "lost", "path"
	Time     Moment     `json:"time"`
	Peer     string     `json:"peer"` // "" when the configuration gives no name
	Address  netip.Addr `json:"address"`
	Seq      int        `json:"seq,omitempty"`   // of "reply" and "lost", from 1
	Bytes    int        `json:"bytes,omitempty"` // of the ICMP message, with "reply"
	RTT      Millis     `json:"rtt_ms"`          // with "reply", else null
	Path     string     `json:"path"`            // "direct", "relay", "none", at that moment
	Endpoint string     `json:"endpoint"`        // address and port, or the relay's URL; "" without a path
	Was      *PingPath  `json:"was,omitempty"`   // with "path": what it was before
	Err      string     `json:"error,omitempty"` // with "lost"
}

// PingPath is a path that is no longer used.
type PingPath struct {
	Path     string `json:"path"`
	Endpoint string `json:"endpoint"`
}

const (
	pingBytes      = 64 // of the ICMP message
	pingRunning    = 128
	pingInterval   = time.Second
	pingTimeout    = 5 * time.Second
	minInterval    = 10 * time.Millisecond
	maxPingTime    = time.Hour
	pathLookAround = 250 * time.Millisecond // how often is looked for a new path between the answers
)

// pingQuery says how often who is asked.
type pingQuery struct {
	to                string
	count             int // 0: until the client goes
	interval, timeout time.Duration
	untilDirect       bool // end when the path is direct
}

// parsePingQuery reads the parameters to, count, interval and timeout (as "1.5s"), and until-direct.
func parsePingQuery(v url.Values) (q pingQuery, err error) {
	q = pingQuery{to: v.Get("to"), interval: pingInterval, timeout: pingTimeout, untilDirect: v.Get("until-direct") == "true"}
	if q.to == "" {
		return q, errors.New("to: the peer is missing")
	}
	if s := v.Get("count"); s != "" {
		if q.count, err = strconv.Atoi(s); err != nil || q.count < 1 {
			return q, fmt.Errorf("count: %q is not a number above 0", s)
		}
	}
	for _, d := range []struct {
		name string
		to   *time.Duration
	}{{"interval", &q.interval}, {"timeout", &q.timeout}} {
		if s := v.Get(d.name); s != "" {
			if *d.to, err = time.ParseDuration(s); err != nil || *d.to < minInterval || *d.to > maxPingTime {
				return q, fmt.Errorf("%s: %q is not a time from %v to %v", d.name, s, minInterval, maxPingTime)
			}
		}
	}
	return q, nil
}

// pinger is one run of echo requests.
type pinger struct {
	n      *Node
	q      pingQuery
	target pingTarget
	emit   func(any) error
	path   pathState
}

// PingPeer sends echo requests as the query says, and calls emit with a *PingEvent for the beginning, each answer, each request
// without one, and each change of the path, until all are done, emit fails, or ctx ends.
func (s source) PingPeer(ctx context.Context, query url.Values, emit func(event any) error) error {
	q, err := parsePingQuery(query)
	if err != nil {
		return err
	}
	p := &pinger{n: s.n, q: q, emit: emit}
	if p.target, err = s.n.pingTarget(q.to); err != nil {
		return err
	}
	if p.path, err = s.n.pathNow(p.target); err != nil {
		return err
	}
	if err := emit(p.event("start")); err != nil {
		return err
	}
	return p.run(ctx)
}

type pingResult struct {
	seq int
	rtt time.Duration
	err error
}

// run ends without leaving a request behind.
func (p *pinger) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan pingResult, pingRunning)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()

	next := time.NewTimer(0)
	defer next.Stop()
	look := time.NewTicker(pathLookAround)
	defer look.Stop()
	sent, running := 0, 0
	for {
		if p.q.untilDirect && p.path.kind == PathDirect {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next.C:
			if running < pingRunning {
				sent++
				running++
				seq := sent
				asking.Go(func() { results <- p.ask(ctx, seq) })
			}
			if p.q.count == 0 || sent < p.q.count {
				next.Reset(p.q.interval)
			}
			continue
		case <-look.C:
			if err := p.lookAtPath(); err != nil {
				return err
			}
			continue
		case r := <-results:
			running--
			if err := p.tell(r); err != nil {
				return err
			}
		}
		if running == 0 && p.q.count > 0 && sent >= p.q.count {
			return nil
		}
	}
}

func (p *pinger) ask(ctx context.Context, seq int) pingResult {
	ctx, cancel := context.WithTimeout(ctx, p.q.timeout)
	defer cancel()
	rtt, err := p.n.net.Ping(ctx, p.target.addr)
	return pingResult{seq, rtt, err}
}

// tell passes on a result, after the change of the path that it came by.
func (p *pinger) tell(r pingResult) error {
	if err := p.lookAtPath(); err != nil {
		return err
	}
	e := p.event("reply")
	e.Seq, e.RTT, e.Bytes = r.seq, Millis(r.rtt), pingBytes
	var icmp *netstack.ICMPError
	switch {
	case r.err == nil:
		return p.emit(e)
	case errors.As(r.err, &icmp):
		e.Err = icmp.Error()
	case errors.Is(r.err, context.DeadlineExceeded):
		e.Err = fmt.Sprintf("no answer within %v", p.q.timeout)
	default:
		e.Err = r.err.Error()
	}
	e.Event, e.RTT, e.Bytes = "lost", 0, 0
	return p.emit(e)
}

// lookAtPath tells of a new path.
func (p *pinger) lookAtPath() error {
	is, err := p.n.pathNow(p.target)
	if err != nil {
		return err
	}
	was := p.path
	p.path = is
	if was.kind == is.kind && was.endpoint == is.endpoint && was.relay == is.relay {
		return nil
	}
	e := p.event("path")
	e.Was = &PingPath{was.kind, was.outer()}
	return p.emit(e)
}

func (p *pinger) event(name string) *PingEvent {
	return &PingEvent{
		Event: name, Time: Moment{time.Now()}, Peer: p.target.name, Address: p.target.addr, Path: p.path.kind, Endpoint: p.path.outer(),
	}
}

// outer is where the path leads: an endpoint or a relay's URL.
func (s pathState) outer() string {
	switch s.kind {
	case PathDirect:
		return s.endpoint.String()
	case PathRelay:
		return s.relay
	}
	return ""
}
