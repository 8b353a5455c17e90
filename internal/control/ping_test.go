package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"testing"
)

// pingNode answers so many times, and then goes on until the client goes.
type pingNode struct {
	fakeNode
	answers int
	ended   chan error
}

func (n *pingNode) PingPeer(ctx context.Context, q url.Values, emit func(any) error) error {
	if q.Get("to") == "" {
		return errors.New("to: the peer is missing")
	}
	for i := range n.answers {
		if err := emit(number{i}); err != nil {
			return err
		}
	}
	if q.Get("to") == "ever" {
		<-ctx.Done()
		n.ended <- ctx.Err()
	}
	return ctx.Err()
}

func TestPingStreamsWhatTheNodeTells(t *testing.T) {
	n := &pingNode{answers: 3, ended: make(chan error, 1)}
	c := NewClient(serveQuietly(t, n))
	var got []int
	take := func(document json.RawMessage) error {
		var x number
		err := json.Unmarshal(document, &x)
		got = append(got, x.N)
		return err
	}
	if err := c.Ping(t.Context(), url.Values{"to": {"once"}}, take); err != nil || len(got) != 3 || got[2] != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	if err := c.Ping(t.Context(), url.Values{}, take); err == nil || err.Error() != "to: the peer is missing" {
		t.Errorf("a query without a peer: %v", err)
	}

	// Each answer is there at once, and the node is told when the client goes.
	ctx, cancel := context.WithCancel(t.Context())
	got = nil
	err := c.Ping(ctx, url.Values{"to": {"ever"}}, func(document json.RawMessage) error {
		err := take(document)
		if len(got) == 3 {
			cancel()
		}
		return err
	})
	if err != nil || len(got) != 3 {
		t.Errorf("got %v, %v", got, err)
	}
	if err := <-n.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the node ended with %v", err)
	}
}

func TestPingNeedsAPinger(t *testing.T) {
	c := NewClient(serveQuietly(t, &fakeNode{}))
	if err := c.Ping(t.Context(), url.Values{"to": {"x"}}, nil); err == nil || err.Error() != "there is no /v1/ping" {
		t.Errorf("got %v", err)
	}
}
