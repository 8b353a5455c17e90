package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// benchNode tells its run's number, and goes on until it is stopped or its client goes.
type benchNode struct {
	fakeNode
	stopped chan uint64
	ended   chan error
}

func (n *benchNode) Bench(ctx context.Context, order json.RawMessage, emit func(any) error) error {
	var o struct{ Target string }
	if err := json.Unmarshal(order, &o); err != nil || o.Target == "" {
		return errors.New("the target is missing")
	}
	if err := emit(number{7}); err != nil {
		return err
	}
	select {
	case run := <-n.stopped:
		return emit(map[string]any{"run": run, "document": strings.Repeat("x", 1<<20)})
	case <-ctx.Done():
		n.ended <- ctx.Err()
		return ctx.Err()
	}
}

func (n *benchNode) StopBench(run uint64) { n.stopped <- run }

func TestBenchStreamsUntilStopped(t *testing.T) {
	n := &benchNode{stopped: make(chan uint64, 1), ended: make(chan error, 1)}
	c := NewClient(serveQuietly(t, n))
	order := map[string]string{"target": "x"}
	var lines []string
	err := c.Bench(t.Context(), order, func(document json.RawMessage) error {
		lines = append(lines, string(document))
		if len(lines) == 1 {
			return c.StopBench(t.Context(), 7)
		}
		return nil
	})
	if err != nil || len(lines) != 2 || !strings.Contains(lines[0], "7") || len(lines[1]) < 1<<20 {
		t.Errorf("%v, %d lines", err, len(lines))
	}
	if err := c.Bench(t.Context(), map[string]string{}, nil); err == nil || err.Error() != "the target is missing" {
		t.Errorf("an order without a target: %v", err)
	}
	if err := c.Bench(t.Context(), strings.Repeat("x", maxOrder), nil); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("an order too long: %v", err)
	}

	// The node is told when the client goes.
	ctx, cancel := context.WithCancel(t.Context())
	err = c.Bench(ctx, order, func(json.RawMessage) error {
		cancel()
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := <-n.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the node ended with %v", err)
	}
}

// chattyNode tells more than a client that does not read takes.
type chattyNode struct {
	fakeNode
	ended chan error
}

func (n *chattyNode) Bench(ctx context.Context, _ json.RawMessage, emit func(any) error) error {
	for {
		if err := emit(strings.Repeat("x", 1<<20)); err != nil {
			n.ended <- err
			return err
		}
	}
}

func (n *chattyNode) StopBench(uint64) {}

// TestBenchEndsForAClientThatDoesNotRead, such as one that is suspended.
func TestBenchEndsForAClientThatDoesNotRead(t *testing.T) {
	n := &chattyNode{ended: make(chan error, 1)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveBench(w, r, n, 100*time.Millisecond) }))
	defer s.Close()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	if err := <-n.ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestBenchNeedsABencher(t *testing.T) {
	c := NewClient(serveQuietly(t, &fakeNode{}))
	if err := c.Bench(t.Context(), 1, nil); err == nil || err.Error() != "there is no /v1/bench" {
		t.Errorf("got %v", err)
	}
	if err := c.call(t.Context(), "POST", "/v1/bench/stop?run=x", answerTime, nil); err == nil || err.Error() != "there is no /v1/bench/stop" {
		t.Errorf("got %v", err)
	}
}
