package exchange

import (
	"sync"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

// TestConcurrentUse is for the race detector, and for send times: each is used once.
func TestConcurrentUse(t *testing.T) {
	a, b := acquainted(t)
	c := private(t, 201).Public()
	const each, workers = 50, 4
	packets := make(chan []byte, each*workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				packet, err := a.Seal(nil, b.key, hello(), start)
				if err != nil {
					t.Error(err)
				}
				packets <- packet
			}
		})
		wg.Go(func() {
			for range each {
				if err := a.SetPeers([]wgkey.Public{b.key, c}); err != nil {
					t.Error(err)
				}
				if err := a.SetPeers([]wgkey.Public{b.key}); err != nil {
					t.Error(err)
				}
				a.Stats()
			}
		})
	}
	wg.Wait()
	close(packets)
	seen := map[uint64]bool{}
	for packet := range packets {
		at := parseHead(opensRaw(t, b, a, packet)).time
		if seen[at] {
			t.Errorf("the send time %d is used twice", at)
		}
		seen[at] = true
	}
	if len(seen) != each*workers {
		t.Errorf("%d messages", len(seen))
	}
}
