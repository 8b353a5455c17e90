package interop

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/derp"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/interop/stock"
	"culvert.dev/culvert/traversal/relay"
	wire "culvert.dev/culvert/traversal/relay/derp"
)

// TestHowOurClientStarts has the stock server say how it was asked.
func TestHowOurClientStarts(t *testing.T) {
	s := startStock(t)
	box := startMiddlebox(t, s.place)
	behind := s.place
	behind.middlebox(box)
	for _, c := range []struct {
		name string
		by   relay.Transport
		want stock.Mode
	}{
		{"metacert seen", relay.TransportFastStart, stock.FastStart},
		{"metacert hidden by a middlebox", relay.TransportDERP, stock.Upgrade},
		{"WebSocket", relay.TransportWebSocket, stock.WebSocket},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(s.Starts())
			e := connect(t, behind, culvertDialer(c.by))
			carry(t, e, e, "hello")
			if got := s.Starts()[before:]; !slices.Equal(got, []stock.Mode{c.want}) {
				t.Errorf("the server was asked by %v, want %v", got, c.want)
			}
		})
	}
}

// TestPlainHTTP connects to the derper command without TLS.
func TestPlainHTTP(t *testing.T) {
	binary, err := derperBinary()
	if err != nil {
		t.Fatal(err)
	}
	d, err := stock.Start(stock.DerperConfig{Binary: binary, Dir: t.TempDir(), Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Stop)
	p := place{url: d.URL}
	a, b := connect(t, p, culvertDialer(relay.TransportDERP)), connect(t, p, culvertDialer(relay.TransportDERP))
	carry(t, a, b, "hello")
}

// TestPinsOfDerper checks pins against the certificate that the derper command makes for itself.
func TestPinsOfDerper(t *testing.T) {
	p := startDerper(t)
	for _, c := range []struct {
		name, pin string
		ok        bool
	}{
		{"of the public key", relay.PinOf(p.leaf).String(), true},
		{"CertName of a stock DERP map", stockPin(p.leaf.Raw), true},
		{"of another certificate", stockPin([]byte("another certificate")), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			pin, err := relay.ParsePin(c.pin)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := dialOurs(t, relay.Dialer{}, relay.Server{URL: p.url, Pins: []relay.Pin{pin}, Proxy: "none"})
			if err == nil {
				conn.Close()
			}
			if (err == nil) != c.ok {
				t.Errorf("got error %v", err)
			}
		})
	}
}

// dialOurs dials with a new key.
func dialOurs(t *testing.T, d relay.Dialer, s relay.Server) (*relay.Conn, error) {
	t.Helper()
	var err error
	if d.Key, err = wgkey.NewPrivate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return d.Dial(ctx, s)
}

// TestKeyUnlikeMetacert has a middlebox present a metacert with a key that the relay does not have.
func TestKeyUnlikeMetacert(t *testing.T) {
	other, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	meta, err := wire.MetaCertificate(other, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	box := startMiddlebox(t, startStock(t).place, meta)
	conn, err := dialOurs(t, relay.Dialer{Roots: box.roots}, relay.Server{URL: box.url, Proxy: "none"})
	if err == nil {
		conn.Close()
		t.Fatal("connected to a relay whose key is not that of its certificate")
	}
	if !strings.Contains(err.Error(), "key") {
		t.Errorf("the error does not speak of the key: %v", err)
	}
}

// TestFramesOfTheServer gives our client, in a session with the stock server, the frames that this server sends once a
// minute or not at all, as the stock packages write them.
func TestFramesOfTheServer(t *testing.T) {
	s := startStock(t)
	box := startMiddlebox(t, s.place)
	behind := s.place
	behind.middlebox(box)
	e := connect(t, behind, culvertDialer(relay.TransportDERP))
	carry(t, e, e, "before")

	box.inject(stockFrame(derp.FrameKeepAlive, ""))
	box.inject(stockFrame(derp.FrameType(0xee), "unknown"))
	box.inject(stockFrame(derp.FramePing, "12345678"))
	box.inject(stockFrame(derp.FrameHealth, "two of you"))
	if ev := e.want(t, "health"); ev.data != "two of you" {
		t.Errorf("health %q", ev.data)
	}
	box.inject(stockFrame(derp.FrameHealth, ""))
	if ev := e.want(t, "health"); ev.data != "" {
		t.Errorf("health %q", ev.data)
	}
	box.inject(stockFrame(derp.FrameRestarting, "\x00\x00\x01\x00\x00\x00\x10\x00"))
	if ev := e.want(t, "restarting"); ev.in != 256*time.Millisecond {
		t.Errorf("restarting in %v", ev.in)
	}
	box.inject(stockFrame(derp.FramePeerGone, strings.Repeat("k", 32))) // as old servers send it, without a reason
	if ev := e.want(t, "gone"); ev.reason != int(wire.GoneDisconnected) {
		t.Errorf("gone for %d", ev.reason)
	}
	carry(t, e, e, "after")
	if !box.hears(string(stockFrame(derp.FramePong, "12345678"))) {
		t.Error("the ping was not answered")
	}
}

// stockFrame is a frame as the stock packages write it.
func stockFrame(t derp.FrameType, payload string) []byte {
	var b bytesWriter
	w := b.buffered()
	if err := derp.WriteFrame(w, t, []byte(payload)); err != nil {
		panic(err) // a write to memory
	}
	w.Flush()
	return b
}

// TestSameKeyTwice connects two clients with one key. Packets go to the one that spoke last.
func TestSameKeyTwice(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(*testing.T) place
		dial  dialFunc
	}{
		{"our clients at derpserver", func(t *testing.T) place { return startStock(t).place }, culvertDialer(relay.TransportFastStart)},
		{"our clients at ours", relays[0].start, culvertDialer(relay.TransportFastStart)},
		{"stock clients at ours", relays[0].start, dialStock(stock.FastStart)},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := c.start(t)
			key, err := wgkey.NewPrivate()
			if err != nil {
				t.Fatal(err)
			}
			first, second := connectAs(t, p, key, c.dial), connectAs(t, p, key, c.dial)
			other := connect(t, p, culvertDialer(relay.TransportFastStart))
			carry(t, first, other, "the first speaks")
			carry(t, other, first, "to the first")
			carry(t, second, other, "the second speaks")
			carry(t, other, second, "to the second")
			second.close()
			carry(t, first, other, "the first speaks again")
			carry(t, other, first, "to the first again")
		})
	}
}
