package attach

import (
	"net/netip"
	"testing"

	"golang.org/x/net/ipv4"
)

// TestHopLimitIsOfOneDatagram looks at the TTL that arrives.
func TestHopLimitIsOfOneDatagram(t *testing.T) {
	s, _ := newSockets(t)
	at := listenLoopback(t)
	p := ipv4.NewPacketConn(at)
	if err := p.SetControlMessage(ipv4.FlagTTL, true); err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(loopback, portOf(at))
	for _, c := range []struct {
		ttl  uint8
		want int // 0: neither of the others
	}{{4, 4}, {7, 7}, {0, 0}} {
		if err := s.send(0, []byte("x"), to, c.ttl); err != nil {
			t.Fatal(err)
		}
		_, cm, _, err := p.ReadFrom(make([]byte, 8))
		if err != nil {
			t.Fatal(err)
		}
		if c.want != 0 && cm.TTL != c.want || c.want == 0 && (cm.TTL == 4 || cm.TTL == 7) {
			t.Errorf("sent with %d, arrived with %d", c.ttl, cm.TTL)
		}
	}
}
