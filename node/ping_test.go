package node

import (
	"context"
	"encoding/json"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/wgkey"
)

// TestPingBetweenNodes has one node ask another through the tunnel, directly and over the control socket.
func TestPingBetweenNodes(t *testing.T) {
	a, b := newSide(t, "100.70.21.1"), newSide(t, "100.70.21.2")
	na := start(t, a.write(t, b.asPeer("bob", "")), filepath.Join(t.TempDir(), "a.sock"))
	start(t, b.write(t, a.asPeer("alice", "")), "")

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if rtt, err := na.Ping(ctx, b.key.Public()); err != nil || rtt <= 0 {
		t.Fatalf("ping: %v, %v", rtt, err)
	}
	if _, err := na.Ping(ctx, wgkey.Public{1}); err == nil || !strings.Contains(err.Error(), "not a peer") {
		t.Errorf("ping of a stranger: %v", err)
	}

	client := control.NewClient(na.cfg.Socket)
	var replies, others []PingEvent
	take := func(document json.RawMessage) error {
		var e PingEvent
		err := json.Unmarshal(document, &e)
		if e.Event == "reply" {
			replies = append(replies, e)
		} else {
			others = append(others, e)
		}
		return err
	}
	for _, to := range []string{"bob", "100.70.21.2"} {
		replies, others = nil, nil
		if err := client.Ping(ctx, url.Values{"to": {to}, "count": {"3"}, "interval": {"20ms"}}, take); err != nil {
			t.Fatal(err)
		}
		if len(replies) != 3 || len(others) == 0 || others[0].Event != "start" {
			t.Fatalf("%s: replies %+v, others %+v", to, replies, others)
		}
		for i, r := range replies {
			if r.Seq != i+1 || r.RTT <= 0 || r.Peer != "bob" || r.Address.String() != "100.70.21.2" || r.Bytes != 64 || r.Path != PathDirect || r.Endpoint == "" {
				t.Errorf("%s: reply %+v", to, r)
			}
		}
	}
	replies, others = nil, nil
	if err := client.Ping(ctx, url.Values{"to": {"bob"}, "until-direct": {"true"}}, take); err != nil || others[len(others)-1].Path != PathDirect {
		t.Errorf("until direct: %v, %+v", err, others)
	}
}

// TestPingTellsOfANewPath asks a peer that is not there, until it is.
func TestPingTellsOfANewPath(t *testing.T) {
	a, b := newSide(t, "100.70.22.1"), newSide(t, "100.70.22.2")
	na := start(t, a.write(t, b.asPeer("bob", "")), filepath.Join(t.TempDir(), "a.sock"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	bob := b.write(t, a.asPeer("alice", ""))
	started := false
	var path PingEvent
	query := url.Values{"to": {"bob"}, "interval": {"50ms"}, "timeout": {"200ms"}, "until-direct": {"true"}}
	err := control.NewClient(na.cfg.Socket).Ping(ctx, query, func(document json.RawMessage) error {
		var e PingEvent
		err := json.Unmarshal(document, &e)
		switch {
		case e.Event == "lost" && !started:
			if e.Path != PathNone || !strings.Contains(e.Err, "no answer within 200ms") {
				t.Errorf("lost: %+v", e)
			}
			started = true
			start(t, bob, "")
		case e.Event == "path":
			path = e
		}
		return err
	})
	if err != nil || ctx.Err() != nil || path.Path != PathDirect || path.Was == nil || path.Was.Path != PathNone || path.Endpoint == "" {
		t.Errorf("%v, %v, path %+v", err, ctx.Err(), path)
	}
}

func TestPingQueries(t *testing.T) {
	for _, c := range []struct{ query, want string }{
		{"", "to: the peer is missing"},
		{"to=x&count=0", `count: "0" is not a number above 0`},
		{"to=x&count=many", `count: "many" is not a number above 0`},
		{"to=x&interval=1ms", `interval: "1ms" is not a time from 10ms to 1h0m0s`},
		{"to=x&timeout=2h", `timeout: "2h" is not a time from 10ms to 1h0m0s`},
		{"to=x&timeout=-1s", `timeout: "-1s" is not a time from 10ms to 1h0m0s`},
	} {
		v, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parsePingQuery(v); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.query, err, c.want)
		}
	}
	q, err := parsePingQuery(url.Values{"to": {"x"}, "count": {"7"}, "interval": {"0.5s"}})
	if err != nil || q.count != 7 || q.interval != 500*time.Millisecond || q.timeout != pingTimeout || q.untilDirect {
		t.Errorf("%+v, %v", q, err)
	}
}
