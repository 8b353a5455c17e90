package relayd

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/control/openmetrics"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/wgstun"
)

var update = flag.Bool("update", false, "write the golden files anew")

func statusSample(now time.Time) Status {
	return Status{
		Name: "relay-fra", Version: "v0.4.0", UptimeS: 93784, PublicKey: wgkey.Public{1}, Listen: []netip.AddrPort{netip.MustParseAddrPort("[::]:443")},
		Offer: Offer{
			URL: "https://198.51.100.7", Guessed: true, Pin: "sha256//AAAA", STUN: "198.51.100.7:3478",
			WGSTUN: &WGSTUNOffer{PublicKey: wgkey.Public{2}, Endpoint: "198.51.100.7:3479", Addresses: []netip.Addr{wgstun.ServerV4, wgstun.ServerV6}},
		},
		Certificate: CertificateStatus{Source: certSelfSigned, Names: []string{"198.51.100.7"}, Expires: now.Add(200 * 24 * time.Hour), Pin: "sha256//AAAA"},
		Allowed:     3, Limits: LimitStatus{RateBits: 50_000_000, MaxClients: 65536, MaxPerAddress: 256},
		Clients: []ClientStatus{
			{
				Key: wgkey.Public{4, 5, 6}, Name: "laptop", Address: netip.MustParseAddr("192.0.2.1"), Active: true, Transport: "fast-start",
				Since: now.Add(-3 * time.Hour), RxBytes: 1 << 30, RxPackets: 900_000, TxBytes: 5_000_000, TxPackets: 4000, QueuedBytes: 2048, QueuedPackets: 2, Dropped: 12,
			},
			{Key: wgkey.Public{7}, Address: netip.MustParseAddr("2001:db8::7"), Active: true, Transport: "web\x1bsocket", Since: now.Add(-12 * time.Second), RxBytes: 148, RxPackets: 1},
		},
		Traffic: TrafficStatus{Accepted: 17, RxBytes: 1<<30 + 148, RxPackets: 900_001, TxBytes: 5_000_000, TxPackets: 4000, QueuedBytes: 2048},
		Refused: map[string]uint64{"not-allowed": 7, "address": 0, "handshake": 3}, Ended: map[string]uint64{"slow": 1, "silent": 0},
		Dropped: map[string]uint64{"queue-full": 12, "unknown": 40, "of-a-later-version": 1},
		STUN: &STUNStatus{
			Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:3478"), netip.MustParseAddrPort("0.0.0.0:3480")}, Answered: 90, Errors: 1,
			Dropped: map[string]uint64{"malformed": 4, "source-rate": 5}, TxBytes: 4000,
		},
		WGSTUN: &WGSTUNStatus{
			Port: 3479, Clients: 3, Answered: 1000, Echoes: 2, Dropped: map[string]uint64{"other-port": 6},
			Static: []StaticClient{{wgkey.Public{4, 5, 6}, netip.MustParseAddr("100.64.1.7")}},
		},
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
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestStatusText(t *testing.T) {
	full, empty := statusSample(someDay), Status{Name: "relay", Version: "v0.4.0", Certificate: CertificateStatus{Source: certACME, Problem: "there is no certificate yet"}}
	for name, s := range map[string]Status{"status.txt": full, "status_empty.txt": empty} {
		var b bytes.Buffer
		if err := s.WriteText(&b, someDay); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
	}
	for range topClients {
		full.Clients = append(full.Clients, full.Clients[1])
	}
	full.Open, full.Limits.RateBits, full.Certificate.Expires = true, 0, someDay.Add(-time.Hour)
	var b bytes.Buffer
	full.WriteText(&b, someDay)
	for _, want := range []string{"and 2 with less traffic", "admits       every key", "any rate of each client", "EXPIRED 1h00m ago"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestStatusJSON(t *testing.T) {
	want := statusSample(someDay)
	text, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", append(text, '\n'))
	var got Status
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v: got %+v", err, got)
	}
}

func TestOfferText(t *testing.T) {
	o := statusSample(someDay).Offer
	key := wgkey.Public{4, 5, 6}
	static := statusSample(someDay).WGSTUN
	golden(t, "offer.txt", []byte(o.String()+"\n"+o.WGSTUN.PeerFor(key, static.AddressesOf(key))))
	o.WGSTUN.Addresses, o.STUN, o.Pin = o.WGSTUN.Addresses[:1], "", ""
	golden(t, "offer_short.txt", []byte(o.String()))
}

func TestURLs(t *testing.T) {
	for want, got := range map[string]string{
		"https://relay.example":      urlOf(true, "relay.example", 443),
		"https://192.0.2.1:8443":     urlOf(true, "192.0.2.1", 8443),
		"https://[2001:db8::1]":      urlOf(true, "2001:db8::1", 443),
		"http://[2001:db8::1]:443":   urlOf(false, "2001:db8::1", 443),
		"http://relay.example":       urlOf(false, "relay.example", 80),
		"https://[2001:db8::1]:8443": urlOf(true, "2001:db8::1", 8443),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// get asks a relay by HTTP at an address or, if that is a path, at a control socket.
func get(t *testing.T, network, addr, path string) (code int, body string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		DisableKeepAlives: true,
	}}
	resp, err := c.Get("http://relay" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestMonitoring(t *testing.T) {
	monitor := "127.0.0.1:" + freePort(t)
	conf := strings.Replace(quiet, "[STUN]\nListen = off", "[STUN]\nListen = 127.0.0.1:0", 1)
	conf = strings.Replace(conf, "[WGSTUN]\nListen = off", "[WGSTUN]\nListen = 127.0.0.1:0", 1)
	c := setUp(t, conf+"[Control]\nHTTP = "+monitor+"\n")
	c.Socket = filepath.Join(t.TempDir(), "relay.sock")
	a, b := newKey(t), newKey(t)
	allow(t, c, a, b)
	r := start(t, c)
	ca, cb := dial(t, a, r), dial(t, b, r)
	passes(t, ca, cb, b.Public())
	eventually(t, "the clients of WG-STUN", func() bool { n, _ := r.wgstun.figures(); return n == 2 })

	for _, at := range [][2]string{{"tcp", monitor}, {"unix", c.Socket}} {
		code, body := get(t, at[0], at[1], "/metrics")
		values, err := openmetrics.Parse([]byte(body))
		if err != nil || code != 200 {
			t.Fatalf("%v: %d, %v\n%s", at, code, err, body)
		}
		for name, least := range map[string]float64{
			`culvert_build_info{version="v0"}`: 1, `culvert_relay_server_ready`: 1, `culvert_relay_server_open`: 0, `culvert_relay_server_allowed_keys`: 2,
			`culvert_relay_server_clients{transport="fast-start"}`: 2, `culvert_relay_server_clients{transport="websocket"}`: 0,
			`culvert_relay_server_clients_limit`: 100, `culvert_relay_server_accepted_total`: 2, `culvert_relay_server_receive_packets_total`: 1,
			`culvert_relay_server_transmit_bytes_total`: 40, `culvert_relay_server_refused_total{reason="not-allowed"}`: 0,
			`culvert_relay_server_cut_total{reason="slow"}`: 0, `culvert_relay_server_drops_total{reason="queue-full"}`: 0,
			`culvert_relay_server_certificate_expiry_timestamp_seconds{source="self-signed"}`: float64(time.Now().Unix()),
			`culvert_relay_server_stun_responses_total{kind="success"}`:                       0, `culvert_relay_server_wgstun_clients`: 2,
			`culvert_relay_server_wgstun_responses_total{kind="stun"}`: 0, `culvert_goroutines`: 10,
		} {
			if v, ok := values[name]; !ok || v < least {
				t.Errorf("%s: got %v, %v, want at least %v", name, v, ok, least)
			}
		}
		if t.Failed() {
			t.Log(body)
		}
	}
	if code, body := get(t, "tcp", monitor, "/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("readyz: %d %q", code, body)
	}

	client := control.NewClient(c.Socket)
	var st Status
	if err := client.Status(t.Context(), &st); err != nil || len(st.Clients) != 2 || st.Offer.URL != r.Offer().URL {
		t.Errorf("status: %v, %+v", err, st)
	}
	if err := client.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	write(t, c.File, "[Relay]\nNonsense = 1\n")
	if err := client.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), c.File+":2: ") {
		t.Errorf("reload: %v", err)
	}
	if v, err := client.Version(t.Context()); v != "v0" || err != nil {
		t.Errorf("version: %q, %v", v, err)
	}
	if err := client.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	conf := strings.Replace(quiet, "[STUN]\nListen = off", "[STUN]\nListen = 127.0.0.1:0", 1)
	conf = strings.Replace(conf, "[WGSTUN]\nListen = off", "[WGSTUN]\nListen = 127.0.0.1:0", 1)
	c := setUp(t, fmt.Sprintf("%s[Control]\nHTTP = 127.0.0.1:%s\n", conf, freePort(t)))
	c.Socket = filepath.Join(t.TempDir(), "relay.sock")
	key := newKey(t)
	allow(t, c, key)
	r := start(t, c)
	conn := dial(t, key, r)
	r.Close()
	conn.ended(t)
	r.Close()
	eventually(t, "no goroutine left", func() bool { return runtime.NumGoroutine() <= before })
	for _, file := range []string{c.Socket, filepath.Join(c.State, lockFile)} {
		if _, err := os.Lstat(file); err == nil {
			t.Errorf("%s is left", file)
		}
	}
	if err := r.Reload(); err == nil {
		t.Error("reload of a relay that has stopped")
	}
	if r.Health() == nil {
		t.Error("a relay that has stopped is ready")
	}
}
