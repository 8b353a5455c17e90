//go:build linux

package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestRelay has two nodes whose routers drop all UDP do real work over TLS.
func TestRelay(t *testing.T) {
	t.Parallel()
	lab.Need(t, "iperf3", "ssh", "sshd", "dig", "curl")
	productOnly(t, "stock WireGuard has no relay")
	w := newRelayWorld(t)
	w.blockUDP()
	relay := w.v1.StartRelay(t, w.relayConf(relay1, ""))
	newNameserver(t, w.s, relayServed).set("db.corp.example.", "10.3.0.99")
	w.b.Resolver(relayServed)
	a, b := w.configs(clientLines(t, relay, "Relay"), "", "")

	began := time.Now()
	w.start(t, a, b)
	w.connected(t)
	t.Logf("from the start of the first node to the first echo: %v", time.Since(began).Round(time.Millisecond))

	t.Run("status tells the path and why", func(t *testing.T) {
		for name, e := range map[string]*lab.Exit{"a": w.nodeA, "b": w.nodeB} {
			p := pathOf(t, e)
			if p.Kind != "relay" || p.Relay != "https://"+relay1 || p.Reason == "" {
				t.Errorf("node %s: path %+v", name, p)
			}
		}
		out, err := w.nodeA.Client("status")
		if err != nil || !strings.Contains(out, "https://"+relay1) {
			t.Errorf("status: %v\n%s", err, out)
		}
	})
	t.Run("iperf3", func(t *testing.T) {
		iperfServer(t, w.s, 5201)
		t.Logf("up %.0f Mbit/s", iperf(t, w.c, relayServed, 5201, 2))
		t.Logf("down %.0f Mbit/s", iperf(t, w.c, relayServed, 5201, 2, "-R"))
	})
	t.Run("ssh", func(t *testing.T) { w.ssh(t) })
	t.Run("DNS by the far node", func(t *testing.T) {
		for _, proto := range []string{"+notcp", "+tcp"} {
			if out := w.c.Run(t, "dig", "+short", "+time=5", proto, "@"+meshB, "db.corp.example"); strings.TrimSpace(out) != "10.3.0.99" {
				t.Errorf("dig %s: %q", proto, out)
			}
		}
	})
	t.Run("large and small packets", func(t *testing.T) {
		for _, size := range []string{"0", "56", "1392"} {
			w.c.Run(t, "ping", "-n", "-M", "do", "-c", "3", "-i", "0.05", "-W", "2", "-s", size, meshB)
		}
	})
	t.Run("the relay counts and knows nothing else", func(t *testing.T) {
		out := relay.MustCommand(t, "status", "--json")
		if strings.Count(out, `"direct"`) != 0 || !strings.Contains(out, w.aKey.Public().Short()) {
			t.Errorf("status of the relay:\n%s", out)
		}
		for _, secret := range []string{w.aKey.Reveal(), w.bKey.Reveal()} {
			if strings.Contains(relay.Log()+out, secret) {
				t.Error("the relay prints a private key")
			}
		}
	})
	t.Run("a key that is taken off the list is cut off", func(t *testing.T) {
		conf := strings.ReplaceAll(w.relayConf(relay1, ""), "Allow = "+w.bKey.Public().String(), "# ")
		if err := os.WriteFile(relay.Conf, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		relay.Reload()
		lab.WaitFor(t, 10*time.Second, "the far node to be cut off", func() bool { return !echoes(w.c, meshB) })
		if err := os.WriteFile(relay.Conf, []byte(w.relayConf(relay1, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		relay.Reload()
		lab.WaitFor(t, 40*time.Second, "the far node to be back", func() bool { return echoes(w.c, meshB) })
	})
}

// ssh logs in at s from c with a key and has it count some megabytes.
func (w *relayWorld) ssh(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	key, host := filepath.Join(dir, "id"), filepath.Join(dir, "host")
	for _, f := range []string{key, host} {
		w.s.Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f)
	}
	pub, err := os.ReadFile(key + ".pub")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "authorized"), pub, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "sshd_config")
	text := fmt.Sprintf("ListenAddress %s\nPort 2222\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n", relayServed, host, filepath.Join(dir, "authorized"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // the laboratory's own /run
		t.Fatal(err)
	}
	w.s.Start(t, nil, "/usr/sbin/sshd", "-D", "-e", "-f", conf)
	lab.WaitFor(t, 10*time.Second, "sshd", func() bool { return w.s.Bound("tcp", 2222) })
	out, err := w.c.Exec(strings.Repeat("0123456789abcdef", 1<<16), "ssh", "-p", "2222", "-i", key, "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@"+relayServed, "wc", "-c")
	if err != nil || strings.TrimSpace(out) != fmt.Sprint(1<<20) {
		t.Errorf("ssh: %v: %q", err, out)
	}
}

// TestRelayBesideUDP has a peer with a configured endpoint: a relay serves where the endpoint is dead, and only there.
func TestRelayBesideUDP(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no relay")
	w := newRelayWorld(t)
	relay := w.v1.StartRelay(t, w.relayConf(relay1, ""))
	w.rb.Nft(`table ip publish {
		chain pre {
			type nat hook prerouting priority dstnat;
			iifname "i" udp dport 40002 dnat to 192.168.3.2
		}
	}
	insert rule inet firewall forward udp dport 40002 accept`)
	a, b := w.configs(clientLines(t, relay, "Relay"), "Endpoint = 198.18.2.2:40002", "")
	w.start(t, a, b)
	w.connected(t)
	lab.WaitFor(t, 20*time.Second, "the direct path", func() bool { return pathOf(t, w.nodeA).Kind == "direct" })
	direct := w.medianRTT(t)

	w.blockUDP()
	cut := time.Now()
	stop := make(chan struct{})
	go func() { // traffic is what lets WireGuard notice
		for {
			select {
			case <-stop:
				return
			default:
				w.c.Exec("", "ping", "-n", "-c", "5", "-i", "0.2", "-W", "1", meshB)
			}
		}
	}()
	defer close(stop)
	lab.WaitFor(t, 40*time.Second, "the relay to take over", func() bool { return pathOf(t, w.nodeA).Kind == "relay" && echoes(w.c, meshB) })
	t.Logf("UDP cut under traffic: relayed after %v", time.Since(cut).Round(100*time.Millisecond))
	relayed := w.medianRTT(t)
	t.Logf("median round trip %v by UDP, %v by relay: %v more", direct, relayed, relayed-direct)
	if p := pathOf(t, w.nodeA); !strings.Contains(p.Reason, "198.18.2.2:40002") {
		t.Errorf("the reason does not name the endpoint that is dead: %+v", p)
	}
}
