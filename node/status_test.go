package node

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

var update = flag.Bool("update", false, "write the golden files anew")

func statusSample(now time.Time) Status {
	return Status{
		Name:       "exit-fra",
		PublicKey:  wgkey.Public{1, 2, 3},
		Addresses:  []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a::1")},
		ListenPort: 51820,
		UptimeS:    11525,
		Version:    "v0.1.0",
		Peers: []PeerStatus{
			{
				Name: "laptop", PublicKey: wgkey.Public{4, 5, 6},
				Addresses:     Ranges{netip.MustParsePrefix("100.64.0.2/32"), netip.MustParsePrefix("fd7a::2/128")},
				Path:          PathStatus{"direct", "192.0.2.1:51820", "", Millis(12345 * time.Microsecond), Moment{now.Add(-3*time.Hour - 5*time.Minute)}, "the peer called from this endpoint"},
				LastHandshake: Moment{now.Add(-12 * time.Second)},
				RxBytes:       1300000, TxBytes: 3650722202,
				Allow: AllowStatus{Inbound: true, Routing: true, LAN: true},
			},
			{
				PublicKey: wgkey.Public{7, 8, 9}, RateBits: 50_000_000, MaxFlows: 200,
				Addresses: Ranges{netip.MustParsePrefix("100.64.0.3/32"), netip.MustParsePrefix("10.9.0.0/16")},
				Path:      PathStatus{Kind: "none", Reason: "waiting for the peer to call"},
				RxBytes:   0, TxBytes: 148,
			},
			{
				Name: "db", PublicKey: wgkey.Public{10},
				Addresses: Ranges{netip.MustParsePrefix("100.64.0.4/32")},
				Path: PathStatus{
					"relay", "https://relay.example", "https://relay.example", Millis(40 * time.Millisecond), Moment{now.Add(-80 * time.Second)},
					"no Endpoint is configured for it, to try it by UDP",
				},
				LastHandshake: Moment{now.Add(-80 * time.Second)}, RxBytes: 5 << 20, TxBytes: 700,
			},
		},
		Flows: FlowStatus{TCP: 12, UDP: 3},
		Relays: []RelayStatus{
			{
				URL: "https://relay.example", State: "connected", Connected: true, Home: true, RTT: Millis(18 * time.Millisecond),
				Since: Moment{now.Add(-90 * time.Second)}, Transport: "fast-start", Proxy: "http://proxy:3128",
				Reconnects: 2, RxBytes: 5 << 20, TxBytes: 900, RxPackets: 4100, TxPackets: 7, Drops: 3,
			},
			{URL: "https://relay2.example:8443", State: "waiting", Since: Moment{now.Add(-2 * time.Second)}, Err: "dial relay2.example:8443: connection refused"},
		},
		RelayLost: 4,
		Outer: []OuterStatus{
			{
				Source: "stun relay.example:3478", Endpoint: netip.MustParseAddrPort("198.51.100.7:40001"), RTT: Millis(17 * time.Millisecond),
				Since: Moment{now.Add(-time.Hour)}, Checked: Moment{now.Add(-4 * time.Second)},
			},
			{Source: "wg-stun", Checked: Moment{now.Add(-14 * time.Second)}, Err: "relay.example:3479: no answer"},
		},
		Drops: map[string]uint64{"denied-lan": 7, "malformed": 7, "no-such-reason": 0, "spoofed-source": 12},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; got\n%s\nwant\n%s", file, got, want)
	}
}

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	empty := Status{Name: "new", Version: "v0.1.0", ListenPort: 40000}
	for name, s := range map[string]Status{"status.txt": statusSample(now), "status_empty.txt": empty} {
		var b bytes.Buffer
		if err := s.WriteText(&b, now); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
	}
}

func TestStatusJSON(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("CET", 3600))
	sample := statusSample(now)
	for name, s := range map[string]Status{"status.json": sample, "status_empty.json": {}} {
		b, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, append(b, '\n'))
	}

	b, err := json.Marshal(&sample)
	if err != nil {
		t.Fatal(err)
	}
	var back Status
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	var moments []*Moment // times come back in UTC
	for i := range sample.Peers {
		moments = append(moments, &sample.Peers[i].LastHandshake, &sample.Peers[i].Path.Since)
	}
	for i := range sample.Relays {
		moments = append(moments, &sample.Relays[i].Since)
	}
	for i := range sample.Outer {
		moments = append(moments, &sample.Outer[i].Since, &sample.Outer[i].Checked)
	}
	for _, m := range moments {
		if !m.IsZero() {
			m.Time = m.UTC()
		}
	}
	if !reflect.DeepEqual(back, sample) {
		t.Errorf("read back\n%+v\nwant\n%+v", back, sample)
	}
}

func TestStatusJSONThatIsWrong(t *testing.T) {
	for _, text := range []string{
		`{"peers":[{"addresses":["nonsense"]}]}`,
		`{"peers":[{"last_handshake":"yesterday"}]}`,
		`{"peers":[{"path":{"rtt_ms":"1"}}]}`,
	} {
		var s Status
		if err := json.Unmarshal([]byte(text), &s); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

func TestHumanUnits(t *testing.T) {
	for _, c := range []struct {
		got, want string
	}{
		{Millis(0).String(), "-"},
		{Millis(900 * time.Microsecond).String(), "0.9 ms"},
		{Millis(12500 * time.Microsecond).String(), "13 ms"},
		{AllowStatus{}.String(), "-"},
		{AllowStatus{Inbound: true, LAN: true}.String(), "inbound,lan"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
