package forward

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// TestOldestAgainstASlowTable compares with a search of everything.
func TestOldestAgainstASlowTable(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	table := newTable()
	var all []*session
	now := time.Duration(0)
	client := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(5))}) }
	slowOldest := func(match func(*session) bool) (oldest *session, n int) {
		for _, s := range all {
			if match(s) {
				n++
				if oldest == nil || s.used.Load() < oldest.used.Load() {
					oldest = s
				}
			}
		}
		return oldest, n
	}
	for step := range 20000 {
		now++
		switch c := client(); random.IntN(6) {
		case 0, 1:
			s := &session{key: key{from: netip.AddrPortFrom(c, uint16(step%60000+1)), local: netip.AddrFrom4([4]byte{byte(step / 60000)})}}
			s.used.Store(int64(now))
			table.add(s)
			all = append(all, s)
		case 2:
			if len(all) > 0 {
				i := random.IntN(len(all))
				if !table.remove(all[i]) || table.remove(all[i]) {
					t.Fatal("remove")
				}
				all = append(all[:i], all[i+1:]...)
			}
		case 3, 4:
			if len(all) > 0 {
				all[random.IntN(len(all))].used.Store(int64(now))
			}
		default:
			want, n := slowOldest(func(*session) bool { return true })
			if got := table.all.oldest(); got != want || table.len() != n {
				t.Fatalf("step %d: oldest is %p of %d, want %p of %d", step, got, table.len(), want, n)
			}
			want, n = slowOldest(func(s *session) bool { return s.key.from.Addr() == c })
			own := table.byClient[c]
			if (own == nil) != (n == 0) || own != nil && (own.oldest() != want || own.len != n) {
				t.Fatalf("step %d: the oldest of %v differs", step, c)
			}
		}
	}
	for _, s := range all {
		table.remove(s)
	}
	if table.len() != 0 || len(table.byClient) != 0 || table.all.first != nil || table.all.last != nil || table.all.len != 0 {
		t.Errorf("not empty in the end: %+v", table)
	}
}
