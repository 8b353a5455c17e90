//go:build linux

package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestRelayThroughProxy has a node whose network lets it talk to an HTTP proxy and to nobody else.
func TestRelayThroughProxy(t *testing.T) {
	t.Parallel()
	lab.Need(t, "tinyproxy")
	productOnly(t, "stock WireGuard has no relay")
	w := newRelayWorld(t)
	w.ra.Nft(`table inet office {
		chain forward {
			type filter hook forward priority -10;
			ip daddr ` + relay2 + ` tcp dport 3128 accept
			ip saddr ` + relay2 + ` tcp sport 3128 accept
			drop
		}
	}`)
	conf := filepath.Join(t.TempDir(), "tinyproxy.conf")
	text := "Port 3128\nListen " + relay2 + "\nTimeout 600\nConnectPort 443\nBasicAuth alice secret\nMaxClients 20\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.v2.Start(t, nil, "tinyproxy", "-d", "-c", conf)
	lab.WaitFor(t, 10*time.Second, "the proxy", func() bool { return w.v2.Bound("tcp", 3128) })

	relay := w.v1.StartRelay(t, w.relayConf(relay1, ""))
	lines := clientLines(t, relay, "Relay")
	a, b := w.configs(lines+"Proxy = http://alice:secret@"+relay2+":3128\n", "", "")
	b.Extra = lines
	w.start(t, a, b)
	w.connected(t)
	if p := pathOf(t, w.nodeA); p.Kind != "relay" {
		t.Errorf("path %+v", p)
	}

	t.Run("a wrong password is told", func(t *testing.T) {
		a.Extra = strings.ReplaceAll(a.Extra, "alice:secret", "alice:guess")
		w.nodeA.WriteConf(t, a)
		if out, err := w.nodeA.Client("reload"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		lab.WaitFor(t, 20*time.Second, "status to tell of the proxy's refusal", func() bool {
			out, _ := w.nodeA.Client("status")
			return strings.Contains(out, "407") || strings.Contains(out, "401")
		})
		out, _ := w.nodeA.Client("status", "--json")
		if all := w.nodeA.Log() + out; strings.Contains(all, "guess") || strings.Contains(all, "secret") {
			t.Errorf("the proxy's password is shown:\n%s", all)
		}
	})
}
