package interop

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// disco is a packet that relays take for one of the search for a path.
var disco = "TS\xf0\x9f\x92\xac" + strings.Repeat("d", 60)

// sizes are those at which something changes: empty, around a buffer, an Ethernet frame, TLS records, the limit.
var sizes = []int{0, 1, 31, 32, 1400, 4096, 16 << 10, 64<<10 - 1, 64 << 10}

// bursts are sizes of packets that are under way together: long ones that fill messages and records alone, between short ones that
// share them. Together they are less than a relay queues.
var bursts = []int{64 << 10, 1, 1400, 1400, 40 << 10, 64<<10 - 1, 1400, 16 << 10, 32 << 10, 0, 1400}

// stockMessage is how long a WebSocket message the stock packages take, in both roles. They put no more than one packet
// into a message but do not divide one, so that between them longer packets break the connection.
const stockMessage = 32 << 10

// TestEveryPairThroughEveryRelay exchanges packets, pings and news of absence between all kinds of clients.
func TestEveryPairThroughEveryRelay(t *testing.T) {
	for _, r := range relays {
		t.Run(r.name, func(t *testing.T) {
			p := r.start(t)
			p.middlebox(startMiddlebox(t, p))
			for _, a := range kinds {
				for _, b := range kinds {
					if r.name != "culvert" && strings.HasPrefix(a.name, "stock") && strings.HasPrefix(b.name, "stock") {
						continue // nothing of ours is in it
					}
					longest := derp.MaxPacket
					if r.name != "culvert" && (a.name == stockWebSocket || b.name == stockWebSocket) {
						longest = stockMessage / 2
					}
					t.Run(a.name+" to "+b.name, func(t *testing.T) { exchange(t, p, a.dial, b.dial, longest) })
				}
			}
		})
	}
}

func exchange(t *testing.T, p place, dialA, dialB dialFunc, longest int) {
	a, b := connect(t, p, dialA), connect(t, p, dialB)
	for _, size := range sizes {
		if size > longest {
			break
		}
		carry(t, a, b, payload(size))
		carry(t, b, a, payload(size))
	}
	burst(t, a, b, longest)
	burst(t, b, a, longest)
	carry(t, a, b, disco)
	carry(t, a, a, "to myself")
	for _, e := range []*end{a, b} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := e.ping(ctx); err != nil {
			t.Error("ping:", err)
		}
		cancel()
	}
	absent := wgkey.Public{1, 2, 3}
	if err := a.send(absent, []byte(disco)); err != nil {
		t.Fatal(err)
	}
	if ev := a.want(t, "gone"); ev.from != absent || ev.reason != int(derp.GoneNotHere) {
		t.Errorf("got %+v, want %v not here", ev, absent)
	}
	b.close() // a has heard from it
	if ev := a.want(t, "gone"); ev.from != b.key || ev.reason != int(derp.GoneDisconnected) {
		t.Errorf("got %+v, want %v disconnected", ev, b.key)
	}
}

// carry sends one packet and checks that it arrives as it was.
func carry(t *testing.T, from, to *end, data string) {
	t.Helper()
	if err := from.send(to.key, []byte(data)); err != nil {
		t.Fatal(err)
	}
	ev := to.want(t, "packet", brief(data))
	if ev.from != from.key {
		t.Fatalf("packet from %s, want %s", ev.from.Short(), from.key.Short())
	}
	if ev.data != data {
		t.Fatalf("got %s, want %s", brief(ev.data), brief(data))
	}
}

// burst sends packets before any has arrived, and checks that all do, in order and as they were.
func burst(t *testing.T, from, to *end, longest int) {
	t.Helper()
	for _, size := range bursts {
		if err := from.send(to.key, []byte(payload(min(size, longest)))); err != nil {
			t.Fatal(err)
		}
	}
	for i, size := range bursts {
		want := payload(min(size, longest))
		if ev := to.want(t, "packet", i, "of a burst"); ev.from != from.key || ev.data != want {
			t.Fatalf("packet %d of a burst: got %s, want %s", i, brief(ev.data), brief(want))
		}
	}
}

// payload is text of a size in which every part differs.
func payload(size int) string {
	b := make([]byte, 0, size+8)
	for i := 0; len(b) < size; i += 8 {
		b = fmt.Appendf(b, "%07x.", i)
	}
	return string(b[:size])
}

func brief(s string) string { return fmt.Sprintf("%d bytes %.20q", len(s), s) }
