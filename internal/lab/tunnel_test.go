//go:build linux

package lab_test

import (
	"testing"

	"culvert.dev/culvert/internal/lab"
)

// TestTunnelOverIPv6 has ends of its own: stock wireguard-go that has sent over IPv4 before keeps addresses for reuse of
// which it writes only the first four bytes.
func TestTunnelOverIPv6(t *testing.T) {
	t.Parallel()
	w := &world{Internet: lab.NewInternet(t)}
	w.echoServers(t)
	w.keys = w.Keys()
	w.config = w.ExitConfig(w.keys, "AllowRouting = yes", "")
	w.exit = w.X.StartExit(t, lab.ExitKind(*exitFlag), w.config)
	tunnel := w.ClientTunnel(w.C, w.keys.C, w.exit.Key)
	tunnel.Peers[0].Endpoint = lab.Port(lab.ExitToC[1], lab.ExitPort)
	w.client = w.C.Stock(t, tunnel)
	for _, f := range families {
		w.works(t, w.C, f)
	}
}

// TestTunnelSurvives changes what lies outside of the tunnel, which connections inside must not notice.
func TestTunnelSurvives(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	w.echoServers(t)
	tunnel := w.ClientTunnel(w.C, w.keys.C, w.exit.Key)
	c := dialTCP(t, w.C, families[0], lab.Port(lab.Server[0], 7))
	alive := func(t *testing.T) {
		t.Helper()
		if err := turn(c); err != nil {
			t.Errorf("a connection from before: %v", err)
		}
		for _, f := range families {
			w.works(t, w.C, f)
		}
	}
	alive(t)
	t.Run("the client's port changes", func(t *testing.T) {
		w.C.Run(t, "wg", "set", w.client.Dev, "listen-port", "40404")
		alive(t)
	})
	t.Run("the client's address changes", func(t *testing.T) {
		w.C.IP("addr", "del", lab.ClientOuter[0]+"/24", "dev", "x")
		w.C.Addr("x", "10.0.1.99/24")
		alive(t)
	})
	t.Run("the client starts again", func(t *testing.T) {
		w.client.Kill()
		w.client = w.C.Stock(t, tunnel)
		alive(t)
	})
}
