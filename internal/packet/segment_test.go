package packet

import (
	"bytes"
	"net/netip"
	"testing"
)

// RFC 9293 section 3.10.7.1: with ACK the reset has the sequence number that was acknowledged, without it acknowledges
// what the segment took.
func TestResetNumbers(t *testing.T) {
	const seq, ack = 0x01020304, 0x0a0b0c0d // of every segment that tcp builds
	for _, r := range []struct {
		name      string
		flags     uint8
		payload   int
		wantFlags uint8
		seq, ack  uint32
	}{
		{"SYN counts one", TCPSyn, 0, TCPRst | TCPAck, 0, seq + 1},
		{"SYN with data", TCPSyn, 10, TCPRst | TCPAck, 0, seq + 11},
		{"FIN counts one", TCPFin, 5, TCPRst | TCPAck, 0, seq + 6},
		{"no flags", 0, 5, TCPRst | TCPAck, 0, seq + 5},
		{"ACK", TCPAck, 5, TCPRst, ack, 0},
		{"SYN and ACK", TCPSyn | TCPAck, 0, TCPRst, ack, 0},
		{"FIN and ACK", TCPFin | TCPAck, 0, TCPRst, ack, 0},
	} {
		for _, b := range [][]byte{
			ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, r.flags, make([]byte, 8), pattern(r.payload))),
			ip6(a6, b6, 6, []ext{opt6(60, 0)}, tcp(a6, b6, r.flags, make([]byte, 8), pattern(r.payload))),
		} {
			p := must(t, b)
			var buf [64]byte
			got := verify(t, AppendReset(buf[:0], p))
			if got.Key != p.Key.Reverse() || got.TCPFlags != r.wantFlags || got.Seq != r.seq || got.Ack != r.ack {
				t.Errorf("%s, IPv%d: %+v", r.name, p.V, *got)
			}
			if &got.Buf[0] != &buf[0] || !got.Plain || got.Data != len(got.Buf) || got.TTL != 64 {
				t.Errorf("%s, IPv%d: shape of % x", r.name, p.V, got.Buf)
			}
		}
	}
}

func TestNoResetWhereNoneIsDue(t *testing.T) {
	m4, m6 := netip.MustParseAddr("224.0.0.5"), netip.MustParseAddr("ff02::5")
	for name, b := range map[string][]byte{
		"reset, IPv4":          ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPRst, nil, nil)),
		"reset, IPv6":          ip6(a6, b6, 6, nil, tcp(a6, b6, TCPRst|TCPAck, nil, nil)),
		"UDP":                  ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, nil)),
		"first fragment":       ip4(a4, b4, 6, nil, 1, flagMF4, tcp(a4, b4, TCPSyn, nil, pattern(4))),
		"later fragment":       ip4(a4, b4, 6, nil, 1, 10, pattern(20)),
		"to multicast, IPv4":   ip4(a4, m4, 6, nil, 1, 0, tcp(a4, m4, TCPSyn, nil, nil)),
		"to multicast, IPv6":   ip6(a6, m6, 6, nil, tcp(a6, m6, TCPSyn, nil, nil)),
		"from multicast, IPv4": ip4(m4, b4, 6, nil, 1, 0, tcp(m4, b4, TCPSyn, nil, nil)),
		"from multicast, IPv6": ip6(m6, b6, 6, nil, tcp(m6, b6, TCPSyn, nil, nil)),
	} {
		if got := AppendReset(nil, must(t, b)); got != nil {
			t.Errorf("%s: % x", name, got)
		}
	}
}

func TestAckHasTheTimestampsTurned(t *testing.T) {
	const seq, ack = 0x11223344, 0x55667788
	times := append([]byte(timestampsHead), 1, 2, 3, 4, 5, 6, 7, 8)
	turned := append([]byte(timestampsHead), 5, 6, 7, 8, 1, 2, 3, 4)
	for _, r := range []struct {
		name          string
		options, want []byte
		payload       int
	}{
		{"no options", nil, nil, 0},
		{"data", nil, nil, 7},
		{"timestamps", times, turned, 0},
		{"timestamps and data", times, turned, 7},
		{"other options", make([]byte, 12), nil, 0},
		{"more options", append(times[:12:12], 1, 1, 1, 1), nil, 0},
	} {
		for _, b := range [][]byte{
			ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPFin|TCPAck, r.options, pattern(r.payload))),
			ip6(a6, b6, 6, nil, tcp(a6, b6, TCPFin|TCPAck, r.options, pattern(r.payload))),
		} {
			p := must(t, b)
			got := verify(t, AppendAck([]byte("kept"), p, seq, ack)[4:])
			if got.Key != p.Key.Reverse() || got.TCPFlags != TCPAck || got.Seq != seq || got.Ack != ack {
				t.Errorf("%s, IPv%d: %+v", r.name, p.V, *got)
			}
			if o := got.Buf[got.L4+headerTCPLen : got.Data]; !bytes.Equal(o, r.want) || got.Data != len(got.Buf) {
				t.Errorf("%s, IPv%d: shape of % x", r.name, p.V, got.Buf)
			}
		}
	}
}

func TestNoAckWhereNoneIsDue(t *testing.T) {
	m4 := netip.MustParseAddr("224.0.0.5")
	for name, b := range map[string][]byte{
		"reset":          ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPRst|TCPAck, nil, nil)),
		"no ACK":         ip6(a6, b6, 6, nil, tcp(a6, b6, TCPFin, nil, nil)),
		"UDP":            ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, nil)),
		"first fragment": ip4(a4, b4, 6, nil, 1, flagMF4, tcp(a4, b4, TCPFin|TCPAck, nil, pattern(4))),
		"to multicast":   ip4(a4, m4, 6, nil, 1, 0, tcp(a4, m4, TCPFin|TCPAck, nil, nil)),
	} {
		if got := AppendAck(nil, must(t, b), 1, 2); got != nil {
			t.Errorf("%s: % x", name, got)
		}
	}
}
