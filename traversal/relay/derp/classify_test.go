package derp

import "testing"

func TestLooksLikeDisco(t *testing.T) {
	packet := append([]byte("TS💬"), make([]byte, 200)...)
	for n := range packet {
		if got, want := LooksLikeDisco(packet[:n]), n >= 62; got != want {
			t.Errorf("%d bytes: %v", n, got)
		}
	}
	for i := range 6 {
		packet[i]++
		if LooksLikeDisco(packet) {
			t.Errorf("byte %d of the magic does not matter", i)
		}
		packet[i]--
	}
}

func TestLooksLikeHandshake(t *testing.T) {
	lengths := map[byte]int{1: 148, 2: 92, 3: 64}
	for typ := range byte(6) {
		for n := range 300 {
			packet := make([]byte, n)
			if n > 0 {
				packet[0] = typ
			}
			if got, want := LooksLikeHandshake(packet), n > 0 && lengths[typ] == n; got != want {
				t.Errorf("type %d of %d bytes: %v", typ, n, got)
			}
			for i := 1; i < 4 && i < n; i++ {
				packet[i] = 1
				if LooksLikeHandshake(packet) {
					t.Errorf("type %d of %d bytes: reserved byte %d does not matter", typ, n, i)
				}
				packet[i] = 0
			}
		}
	}
}
