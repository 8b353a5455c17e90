package tunnel

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

func TestLogBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedLog
		l := bridge(out.logger())
		l.Verbosef("%v - Sending keepalive packet", "peer(x)")
		for i := range 5 {
			l.Errorf("%v - Failed to send data packets: %v", "peer(x)", fmt.Errorf("cause %d", i))
		}
		l.Errorf("%v - Failed to send handshake initiation: %v", "peer(x)", fmt.Errorf("no known endpoint for peer"))
		l.Errorf("Failed to send: %v", fmt.Errorf("write: %w", net.ErrClosed))
		time.Sleep(repeatAfter)
		l.Errorf("%v - Failed to send data packets: %v", "peer(x)", fmt.Errorf("cause 6"))
		got := out.String()
		for _, c := range []struct {
			what string
			n    int
		}{
			{"level=DEBUG", 3},
			{"level=WARN", 2},
			{`level=WARN msg="peer(x) - Failed to send data packets: cause 0"`, 1},
			{`level=WARN msg="peer(x) - Failed to send data packets: cause 6" repeated=4`, 1},
			{`level=DEBUG msg="peer(x) - Failed to send handshake initiation: no known endpoint for peer"`, 1},
		} {
			if n := strings.Count(got, c.what); n != c.n {
				t.Errorf("%d times %q, want %d\n%s", n, c.what, c.n, got)
			}
		}
	})
}

func TestRelayEndpointsAreAbbreviatedInTheLog(t *testing.T) {
	key := newKey(t).Public()
	for in, want := range map[string]string{
		"from " + relayText(key) + ", twice": "from relay:" + key.Short() + ", twice",
		relayText(key):                       "relay:" + key.Short(),
		"relay:" + strings.Repeat("x", 64):   "relay:" + strings.Repeat("x", 64),
		"relay: none":                        "relay: none",
		"nothing of the kind":                "nothing of the kind",
	} {
		if got := abbreviate(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// eventTUN is a tun.Device that only has events.
type eventTUN struct {
	tun.Device
	events chan tun.Event
}

func (e eventTUN) Events() <-chan tun.Event { return e.events }

func TestSteadyTUNPassesMTUChangesOnly(t *testing.T) {
	dev := eventTUN{events: make(chan tun.Event, 4)}
	s := steady(dev)
	dev.events <- tun.EventUp
	dev.events <- tun.EventDown
	dev.events <- tun.EventMTUUpdate | tun.EventUp
	close(dev.events)
	var got []tun.Event
	for e := range s.Events() {
		got = append(got, e)
	}
	if len(got) != 1 || got[0] != tun.EventMTUUpdate {
		t.Errorf("events %v, want one MTU update", got)
	}
}

// Attribute keys are an interface to whoever reads logs by machine: they are spelled in one place.
func TestAttributeKeysAreConstants(t *testing.T) {
	call := regexp.MustCompile(`log\.(?:Debug|Info|Warn|Error)\("[^"]*", *"`)
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if m := call.Find(text); m != nil {
			t.Errorf("%s: %s...: the attribute key is not one of log.go", name, m)
		}
	}
}
