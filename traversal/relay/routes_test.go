package relay

import (
	"encoding/binary"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// TestRouteTableIsBounded has strangers send from ever new keys: they do not displace the peers we talk to.
func TestRouteTableIsBounded(t *testing.T) {
	table := newRouteTable()
	relays := []view{{id: 1, up: true}}
	now := time.Unix(1000, 0)
	key := func(i int) (k wgkey.Public) {
		binary.BigEndian.PutUint64(k[:], uint64(i))
		return k
	}
	for i := range maxWanted {
		table.hear(key(i)).came(1, false, relays, now)
		if p := table.want(key(i)); p.via != 1 || table.strangers[key(i)] != nil {
			t.Fatal("what was heard of a peer is lost when something is sent to it")
		}
	}
	for i := range 20_000 {
		now = now.Add(ms)
		table.hear(key(1<<32+i)).came(1, true, relays, now)
	}
	if len(table.wanted) != maxWanted || len(table.strangers) != maxStrangers {
		t.Errorf("%d and %d entries", len(table.wanted), len(table.strangers))
	}
	for i := range maxWanted {
		if p := table.find(key(i)); p == nil || p.via != 1 {
			t.Fatalf("peer %d is not known any more", i)
		}
	}
	for i := range maxWanted { // as many new peers: most old ones go, and never the table grows
		now = now.Add(ms)
		table.want(key(1<<33+i)).came(1, false, relays, now)
	}
	if old := table.find(key(0)); len(table.wanted) != maxWanted {
		t.Errorf("%d entries, %v", len(table.wanted), old)
	}
	if p := table.find(key(1<<33 + maxWanted - 1)); p == nil {
		t.Error("the newest peer is not known")
	}
	table.forget(1)
	for _, m := range []map[wgkey.Public]*peerRoute{table.wanted, table.strangers} {
		for _, p := range m {
			if p.via != 0 || len(p.marks) != 0 {
				t.Fatal("a relay that is gone is still a route")
			}
		}
	}
}
