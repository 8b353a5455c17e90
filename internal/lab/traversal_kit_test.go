//go:build linux

package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
)

// pair are two sites with a node each, which know each other's keys and a relay:
//
//	a1 ── a ── core ── b ── b1
//	            │
//	           srv
type pair struct {
	*lab.NATWorld
	siteA, siteB *lab.Site
	a, b         *lab.MeshNode
}

// newPair builds two sites with a running relay. The nodes are not started.
func newPair(t *testing.T, a, b lab.SiteConfig) *pair {
	t.Helper()
	productOnly(t, "stock WireGuard has no traversal")
	p := &pair{NATWorld: lab.NewNATWorld(t)}
	p.siteA, p.siteB = p.Site("a", a), p.Site("b", b)
	p.StartRelay(t)
	p.a, p.b = p.MeshNode(p.siteA.Hosts[0]), p.MeshNode(p.siteB.Hosts[0])
	p.a.Meet(p.b)
	return p
}

// plainPair is newPair with two sites of these types.
func plainPair(t *testing.T, a, b testnet.RouterType) *pair {
	t.Helper()
	return newPair(t, lab.SiteConfig{Type: a}, lab.SiteConfig{Type: b})
}

// start runs both nodes.
func (p *pair) start(t testing.TB) {
	t.Helper()
	p.a.Start(t)
	p.b.Start(t)
}

// peerView is what a node's status says of a peer.
type peerView struct {
	Name      string `json:"name"`
	Path      path   `json:"path"`
	Traversal struct {
		Phase         string  `json:"phase"`
		Mode          string  `json:"mode"`
		Local         string  `json:"local"`
		Remote        string  `json:"remote"`
		Technique     string  `json:"technique"`
		RTT           float64 `json:"rtt_ms"`
		DirectAfterMS float64 `json:"direct_after_ms"`
		Upgrades      int     `json:"upgrades"`
		Fallbacks     int     `json:"fallbacks"`
	} `json:"traversal"`
}

// viewOf asks a node for what it says of a peer; ok is false while the node does not answer.
func viewOf(m, peer *lab.MeshNode) (v peerView, ok bool) {
	var s struct {
		Peers []peerView `json:"peers"`
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if control.NewClient(m.Socket()).Status(ctx, &s) != nil {
		return v, false
	}
	i := slices.IndexFunc(s.Peers, func(v peerView) bool { return v.Name == peer.Name })
	if i < 0 {
		return v, false
	}
	return s.Peers[i], true
}

// poll calls cond every 20 ms, as every call asks a process, until it holds or limit is over.
func poll(limit time.Duration, cond func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// becomes waits until a node says that its path to the peer is of a kind, and returns how long that took.
func becomes(t testing.TB, m, peer *lab.MeshNode, kind string, limit time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	var last peerView
	if !poll(limit, func() bool {
		last, _ = viewOf(m, peer)
		return last.Path.Kind == kind
	}) {
		t.Fatalf("%s to %s: not %s after %v: %+v", m.Name, peer.Name, kind, limit, last)
	}
	return time.Since(start)
}

// bothBecome is becomes for both nodes of the pair.
func (p *pair) bothBecome(t testing.TB, kind string, limit time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	becomes(t, p.a, p.b, kind, limit)
	becomes(t, p.b, p.a, kind, limit)
	return time.Since(start)
}

// pingEvent is a line of `culvert ping --json`.
type pingEvent struct {
	Event string  `json:"event"`
	Seq   int     `json:"seq"`
	RTT   float64 `json:"rtt_ms"`
	Path  string  `json:"path"`
	at    time.Time
}

// stream has a node send echo requests to a peer until stop, or until it is done, and calls on for every event.
func stream(t testing.TB, m, peer *lab.MeshNode, query url.Values, on func(e pingEvent)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	query.Set("to", peer.Addr)
	done := make(chan error, 1)
	go func() {
		done <- control.NewClient(m.Socket()).Ping(ctx, query, func(document json.RawMessage) error {
			e := pingEvent{at: time.Now()}
			if err := json.Unmarshal(document, &e); err != nil {
				return err
			}
			on(e)
			return nil
		})
	}()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ping from %s to %s: %v", m.Name, peer.Name, err)
		}
	}
}

// answers reports whether a node gets an answer from a peer within limit.
func answers(m, peer *lab.MeshNode, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	query := url.Values{"to": {peer.Addr}, "interval": {"50ms"}, "timeout": {"2s"}}
	got := false
	control.NewClient(m.Socket()).Ping(ctx, query, func(document json.RawMessage) error {
		var e pingEvent
		if json.Unmarshal(document, &e) == nil && e.Event == "reply" {
			got = true
			cancel()
		}
		return nil
	})
	return got
}

// mustAnswer is answers, in both directions, for what has to be so.
func (p *pair) mustAnswer(t testing.TB, when string) {
	t.Helper()
	for _, ends := range [][2]*lab.MeshNode{{p.a, p.b}, {p.b, p.a}} {
		if !answers(ends[0], ends[1], 5*time.Second) {
			v, _ := viewOf(ends[0], ends[1])
			t.Errorf("%s: %s gets no answer from %s: %+v", when, ends[0].Name, ends[1].Name, v)
		}
	}
}

// echoEvery is between the requests of an echoTrain.
const echoEvery = 20 * time.Millisecond

// echoTrain are echo requests from a to b every 20 ms.
type echoTrain struct {
	t    testing.TB
	stop func()

	mu sync.Mutex
	// guards the following
	replies []pingEvent
	lost    int
}

func (p *pair) echoTrain(t testing.TB) *echoTrain {
	t.Helper()
	e := &echoTrain{t: t}
	e.stop = stream(t, p.a, p.b, url.Values{"interval": {echoEvery.String()}, "timeout": {"1s"}}, func(ev pingEvent) {
		e.mu.Lock()
		defer e.mu.Unlock()
		switch ev.Event {
		case "reply":
			e.replies = append(e.replies, ev)
		case "lost":
			e.lost++
		}
	})
	if !poll(10*time.Second, func() bool { return e.count() > 20 }) {
		t.Fatalf("no answers from %s", p.b.Name)
	}
	return e
}

func (e *echoTrain) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.replies)
}

// mark begins a new account.
func (e *echoTrain) mark() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.replies, e.lost = e.replies[len(e.replies)-1:], 0
}

// account is what has happened since the last mark: the longest time without an answer, the slowest answer, and how many
// requests had none.
func (e *echoTrain) account() (gap, slowest time.Duration, lost int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := 1; i < len(e.replies); i++ {
		gap = max(gap, e.replies[i].at.Sub(e.replies[i-1].at))
		slowest = max(slowest, time.Duration(e.replies[i].RTT*float64(time.Millisecond)))
	}
	if n := len(e.replies); n > 0 {
		gap = max(gap, time.Since(e.replies[n-1].at))
	}
	return gap, slowest, e.lost
}

// ms renders a time for a log.
func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
