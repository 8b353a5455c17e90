package tunnel

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

const sampleState = `private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
listen_port=12912
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
protocol_version=1
endpoint=[abcd:23::33%2]:51820
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
allowed_ip=192.168.4.4/32
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
some_future_key=1
endpoint=182.122.22.19:3233
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
tx_bytes=38333
rx_bytes=2224
allowed_ip=192.168.4.6/32
public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58
public_key=1a2b14fd594556f522604703340351258903b64f35553763f19426ab2a515c58
endpoint=relay:1a2b14fd594556f522604703340351258903b64f35553763f19426ab2a515c58
rx_bytes=7
`

func TestParseState(t *testing.T) {
	got, err := parseState(sampleState)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]PeerStats{
		"b85996fe": {Endpoint: netip.MustParseAddrPort("[abcd:23::33%2]:51820")},
		"58402e69": {Endpoint: netip.MustParseAddrPort("182.122.22.19:3233"), LastHandshake: time.Unix(1700000000, 5), TxBytes: 38333, RxBytes: 2224},
		"662e14fd": {},
		"1a2b14fd": {Relayed: true, RxBytes: 7},
	}
	if len(got) != len(want) {
		t.Fatalf("%d peers, want %d", len(got), len(want))
	}
	for key, s := range got {
		w := want[key.Hex()[:8]]
		w.PublicKey = key
		if s != w {
			t.Errorf("got %+v, want %+v", s, w)
		}
	}
}

func TestParseStateRefuses(t *testing.T) {
	peer := "public_key=" + strings.Repeat("ab", 32) + "\n"
	for _, text := range []string{
		"no equals sign\n", "public_key=ab\n", "public_key=" + strings.Repeat("ab", 33) + "\n", "public_key=" + strings.Repeat("xy", 32) + "\n",
		peer + "endpoint=example.com:1\n", peer + "endpoint=relay:ab\n", peer + "rx_bytes=-1\n", peer + "tx_bytes=1e3\n", peer + "tx_bytes=\n",
		peer + "last_handshake_time_sec=9223372036854775808\n", peer + "last_handshake_time_nsec=x\n",
	} {
		if got, err := parseState(text); err == nil {
			t.Errorf("%q accepted: %+v", text, got)
		}
	}
	secret := strings.Repeat("5e", 31)
	if _, err := parseState("public_key=" + secret + "\n"); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("the error repeats the value: %v", err)
	}
}

// FuzzParseState checks that any text is either refused or means the same after being written out again.
func FuzzParseState(f *testing.F) {
	f.Add(sampleState)
	f.Add("")
	f.Add("public_key=" + strings.Repeat("00", 32))
	f.Add("public_key=" + strings.Repeat("00", 32) + "\nlast_handshake_time_nsec=9223372036854775807\nlast_handshake_time_sec=9223372036854775807\n")
	f.Fuzz(func(t *testing.T, text string) {
		first, err := parseState(text)
		if err != nil {
			return
		}
		second, err := parseState(writeState(first))
		if err != nil {
			t.Fatal(err)
		}
		if len(first) != len(second) {
			t.Fatalf("%d peers, then %d", len(first), len(second))
		}
		for key, s := range first {
			if s2 := second[key]; !s.LastHandshake.Equal(s2.LastHandshake) || s.Endpoint != s2.Endpoint || s.Relayed != s2.Relayed || s.RxBytes != s2.RxBytes || s.TxBytes != s2.TxBytes {
				t.Errorf("%+v, then %+v", s, s2)
			}
		}
	})
}

func writeState(peers map[wgkey.Public]PeerStats) string {
	var b strings.Builder
	for key, s := range peers {
		fmt.Fprintf(&b, "public_key=%s\ntx_bytes=%d\nrx_bytes=%d\n", key.Hex(), s.TxBytes, s.RxBytes)
		if s.Endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", s.Endpoint)
		}
		if s.Relayed {
			fmt.Fprintf(&b, "endpoint=%s\n", relayText(key))
		}
		if !s.LastHandshake.IsZero() {
			fmt.Fprintf(&b, "last_handshake_time_sec=%d\nlast_handshake_time_nsec=%d\n", s.LastHandshake.Unix(), s.LastHandshake.Nanosecond())
		}
	}
	return b.String()
}
