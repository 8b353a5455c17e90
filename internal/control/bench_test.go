package control

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
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

func TestBenchNeedsABencher(t *testing.T) {
	c := NewClient(serveQuietly(t, &fakeNode{}))
	if err := c.Bench(t.Context(), 1, nil); err == nil || err.Error() != "there is no /v1/bench" {
		t.Errorf("got %v", err)
	}
	if err := c.call(t.Context(), "POST", "/v1/bench/stop?run=x", answerTime, nil); err == nil || err.Error() != "there is no /v1/bench/stop" {
		t.Errorf("got %v", err)
	}
}
