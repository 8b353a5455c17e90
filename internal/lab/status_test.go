//go:build linux

package lab_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// status is what the laboratory reads of status --json.
type status struct {
	Name       string   `json:"name"`
	PublicKey  string   `json:"public_key"`
	Addresses  []string `json:"addresses"`
	ListenPort int      `json:"listen_port"`
	Peers      []struct {
		Name          string `json:"name"`
		LastHandshake any    `json:"last_handshake"`
		RxBytes       int64  `json:"rx_bytes"`
		TxBytes       int64  `json:"tx_bytes"`
	} `json:"peers"`
	Flows struct{ TCP, UDP, ICMP int } `json:"flows"`
	Drops map[string]int64             `json:"drops"`
}

// heardFrom reports whether a running node has completed a handshake with its first peer and got data.
func heardFrom(t *testing.T, e *lab.Exit) bool {
	t.Helper()
	var s status
	if err := e.Status(&s); err != nil {
		return false // not yet listening
	}
	return len(s.Peers) > 0 && s.Peers[0].RxBytes > 0 && s.Peers[0].LastHandshake != nil && s.Peers[0].LastHandshake != ""
}

func listenPort(t *testing.T, e *lab.Exit) int {
	t.Helper()
	var s status
	lab.WaitFor(t, 10*time.Second, "the control socket", func() bool { return e.Status(&s) == nil })
	if s.ListenPort == 0 {
		t.Fatal("status has no listen_port")
	}
	return s.ListenPort
}

func TestStatus(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no status")
	w := newWorld(t, "AllowRouting = yes", "AllowInbound = yes")
	w.echoServers(t)

	t.Run("every field is there", func(t *testing.T) {
		var got any
		if err := w.exit.Status(&got); err != nil {
			t.Fatal(err)
		}
		for _, path := range [][]any{
			{"name"}, {"public_key"}, {"addresses", 0}, {"addresses", 1}, {"listen_port"}, {"uptime_s"}, {"version"},
			{"peers", 1, "name"}, {"peers", 0, "public_key"}, {"peers", 0, "addresses", 0}, {"peers", 0, "last_handshake"},
			{"peers", 0, "rx_bytes"}, {"peers", 0, "tx_bytes"},
			{"peers", 0, "path", "kind"}, {"peers", 0, "path", "endpoint"}, {"peers", 0, "path", "rtt_ms"},
			{"peers", 0, "path", "since"}, {"peers", 0, "path", "reason"},
			{"peers", 0, "allow", "inbound"}, {"peers", 0, "allow", "routing"}, {"peers", 0, "allow", "lan"},
			{"flows", "tcp"}, {"flows", "udp"}, {"flows", "icmp"}, {"drops"},
		} {
			if !has(got, path) {
				t.Errorf("no %v", path)
			}
		}
	})
	t.Run("it tells what happened", func(t *testing.T) {
		c := dialTCP(t, w.C, families[0], lab.Port(lab.Server[0], 7))
		c.Write([]byte("x"))
		c.Read(make([]byte, 1))
		exchange(t, w.C.ListenUDP(t, lab.Port(lab.ClientMesh[0], 0)), lab.Port(lab.Server[0], 7), []byte("x"))
		ping(w, "-c", "1", lab.Server[0])
		w.C.Dial("tcp4", lab.Port(lab.ExitWAN[0], 22), time.Second) // denied
		var s status
		if err := w.exit.Status(&s); err != nil {
			t.Fatal(err)
		}
		if s.Name != "exit" || s.PublicKey != w.exit.Key.String() || s.ListenPort != lab.ExitPort {
			t.Errorf("got name %q, key %q, port %d", s.Name, s.PublicKey, s.ListenPort)
		}
		if s.Flows.TCP < 1 || s.Flows.UDP < 1 || s.Flows.ICMP < 1 {
			t.Errorf("got flows %+v, want at least one of each", s.Flows)
		}
		drops := int64(0)
		for _, n := range s.Drops {
			drops += n
		}
		if drops == 0 {
			t.Error("a denied connection is not among the drops")
		}
		if !heardFrom(t, w.exit) {
			t.Errorf("got peer %+v, want a handshake and data", s.Peers[0])
		}
	})
	t.Run("health says ready", func(t *testing.T) {
		if out, err := w.exit.Client("health"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("the control socket is for its owner only", func(t *testing.T) {
		sockets := 0
		filepath.WalkDir(filepath.Dir(w.exit.Conf), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type()&os.ModeSocket != 0 {
				sockets++
				if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
				}
			}
			return err
		})
		if sockets != 1 {
			t.Errorf("found %d sockets in the state directory, want 1", sockets)
		}
	})
}

// has reports whether a decoded JSON value has something, be it null, at a path of keys and indexes.
func has(v any, path []any) bool {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			object, _ := v.(map[string]any)
			next, ok := object[step]
			if !ok {
				return false
			}
			v = next
		case int:
			list, _ := v.([]any)
			if step >= len(list) {
				return false
			}
			v = list[step]
		}
	}
	return true
}
