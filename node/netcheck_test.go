package node

import (
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/internal/config"
)

func TestNetcheckConfig(t *testing.T) {
	a := newSide(t, "100.70.23.1")
	file := a.write(t, "[Relay]\nURL = https://relay.example\n[STUN]\nServer = relay.example:3478\n[Traversal]\nPortMapping = no\n")
	conf, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := NetcheckConfig(conf)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Relays) != 1 || c.Relays[0].URL != "https://relay.example" || !slices.Equal(c.STUN, []string{"relay.example:3478"}) || !c.NoPortMapping || c.Key != a.key {
		t.Errorf("%+v", c)
	}
}

func TestNetcheckRelays(t *testing.T) {
	s := &Status{Relays: []RelayStatus{
		{URL: "https://a", Connected: true, RTT: Millis(12 * time.Millisecond), Transport: "derp"},
		{URL: "https://b", Err: "connect: refused"},
	}}
	got := s.NetcheckRelays()
	if len(got) != 2 || !got[0].Connected || got[0].RTT != 12 || !got[0].FromNode || got[1].Connected || got[1].Err != "connect: refused" {
		t.Errorf("%+v", got)
	}
}

func TestSTUNBeside(t *testing.T) {
	got := STUNBeside([]string{"https://relay.example:8443", "http://[2001:db8::1]", "https://relay.example", "::", ""})
	if want := []string{"relay.example:3478", "[2001:db8::1]:3478"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
