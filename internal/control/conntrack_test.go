package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// flowNode has flows: as many as it says, and events that the test sends.
type flowNode struct {
	fakeNode
	flows   int
	events  chan int
	watches chan string // a word for each beginning and end of a watch
}

type number struct {
	N int `json:"n"`
}

func (n *flowNode) check(q url.Values) error {
	if q.Get("peer") == "nobody" {
		return errors.New(`there is no peer named "nobody"`)
	}
	return nil
}

func (n *flowNode) ListFlows(q url.Values) (iter.Seq[any], error) {
	return func(yield func(any) bool) {
		for i := range n.flows {
			if !yield(number{i}) {
				return
			}
		}
	}, n.check(q)
}

func (n *flowNode) CountFlows(q url.Values) (int, error) { return n.flows, n.check(q) }

func (n *flowNode) FlushFlows(q url.Values) (int, error) {
	if err := n.check(q); err != nil {
		return 0, err
	}
	was := n.flows
	n.flows = 0
	return was, nil
}

func (n *flowNode) WatchFlows(ctx context.Context, q url.Values, emit func(any, bool) error) error {
	if err := n.check(q); err != nil {
		return err
	}
	n.watches <- "begin"
	defer func() { n.watches <- "end" }()
	if err := emit(nil, false); err != nil {
		return err
	}
	for {
		select {
		case i := <-n.events:
			if err := emit(number{i}, len(n.events) > 0); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// serveQuietly serves any source until the test ends, and checks that no goroutine is left.
func serveQuietly(t *testing.T, source Source) (path string) {
	t.Helper()
	before := runtime.NumGoroutine()
	path = filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, source, nil)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		for range 400 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Errorf("%d goroutines are left", runtime.NumGoroutine()-before)
	})
	return path
}

func numbers(t *testing.T, out *[]int) func(json.RawMessage) error {
	return func(document json.RawMessage) error {
		var n number
		err := json.Unmarshal(document, &n)
		*out = append(*out, n.N)
		return err
	}
}

func TestFlowsAreStreamed(t *testing.T) {
	n := &flowNode{flows: 65536}
	c := NewClient(serveQuietly(t, n))
	var got []int
	start := time.Now()
	if err := c.Flows(t.Context(), url.Values{"peer": {"laptop"}}, numbers(t, &got)); err != nil || len(got) != n.flows || got[65535] != 65535 {
		t.Errorf("%d flows, %v", len(got), err)
	}
	t.Logf("%d flows in %v", len(got), time.Since(start))
	bad := url.Values{"peer": {"nobody"}}
	wantError(t, c.Flows(t.Context(), bad, nil), `there is no peer named "nobody"`)
	if count, err := c.CountFlows(t.Context(), nil); err != nil || count != 65536 {
		t.Errorf("count: %d, %v", count, err)
	}
	_, err := c.FlushFlows(t.Context(), bad)
	wantError(t, err, "nobody")
	if count, err := c.FlushFlows(t.Context(), nil); err != nil || count != 65536 || n.flows != 0 {
		t.Errorf("flush: %d, %v", count, err)
	}
	stop := errors.New("enough")
	n.flows = 100
	if err := c.Flows(t.Context(), nil, func(json.RawMessage) error { return stop }); err != stop {
		t.Errorf("a reader that stops: %v", err)
	}
}

func TestEventsStreamUntilTheClientGoes(t *testing.T) {
	n := &flowNode{events: make(chan int, 10), watches: make(chan string, 10)}
	c := NewClient(serveQuietly(t, n))
	wantError(t, c.FlowEvents(t.Context(), url.Values{"peer": {"nobody"}}, nil), "nobody")
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan string, 10)
	done := make(chan error)
	go func() {
		done <- c.FlowEvents(ctx, nil, func(d json.RawMessage) error { got <- string(d); return nil })
	}()
	if w := <-n.watches; w != "begin" {
		t.Fatal(w)
	}
	for i := range 3 {
		n.events <- i
		select {
		case d := <-got:
			if d != fmt.Sprintf(`{"n":%d}`, i) {
				t.Errorf("got %s", d)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("event %d does not come at once", i)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("an interrupted client: %v", err)
	}
	if w := <-n.watches; w != "end" {
		t.Error(w)
	}
}

// The deadlines that protect the server from slow requests must not cut a stream.
func TestEventsOutliveTheServersDeadlines(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for longer than the server's read deadline")
	}
	n := &flowNode{events: make(chan int, 10), watches: make(chan string, 10)}
	c := NewClient(serveQuietly(t, n))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan string, 10)
	go c.FlowEvents(ctx, nil, func(d json.RawMessage) error { got <- string(d); return nil })
	<-n.watches
	select {
	case w := <-n.watches:
		t.Fatalf("the stream came to its %s", w)
	case <-time.After(readTime + time.Second/2):
	}
	n.events <- 1
	select {
	case <-got:
	case <-time.After(time.Second):
		t.Error("no event any more")
	}
}

func TestShutdownEndsStreams(t *testing.T) {
	n := &flowNode{events: make(chan int), watches: make(chan string, 10)}
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, n, nil)
	done := make(chan error, 1)
	go func() {
		done <- NewClient(path).FlowEvents(context.Background(), nil, func(json.RawMessage) error { return nil })
	}()
	<-n.watches
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("shutdown: %v after %v", err, time.Since(start))
	}
	if err := <-done; err != nil {
		t.Errorf("the client of a node that stops: %v", err)
	}
}

// A client that reads nothing must not keep the node from stopping.
func TestShutdownCutsClientsThatDoNotRead(t *testing.T) {
	n := &flowNode{flows: 1 << 20}
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, n, nil)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /v1/conntrack HTTP/1.1\r\nHost: x\r\n\r\n")
	c.Read(make([]byte, 100))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
}

func TestSourceWithoutFlows(t *testing.T) {
	c, _ := serve(t, &fakeNode{})
	err := c.Flows(t.Context(), nil, nil)
	if err == nil || !strings.Contains(err.Error(), "there is no /v1/conntrack") {
		t.Errorf("got %v", err)
	}
}
