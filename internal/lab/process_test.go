//go:build linux

package lab_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestNoPrivilege proves that the exit under test is what it claims to be: without root, capabilities and TUN.
func TestNoPrivilege(t *testing.T) {
	t.Parallel()
	productOnly(t, "it runs as root, which is the point")
	w := newWorld(t, "AllowRouting = yes", "")
	w.echoServers(t)
	w.works(t, w.C, families[0])
	p, err := w.exit.Proc()
	if err != nil {
		t.Fatal(err)
	}
	const none = "0000000000000000"
	if p.CapEff != none || p.CapPrm != none || p.CapBnd != none {
		t.Errorf("capabilities: effective %s, permitted %s, bounding %s", p.CapEff, p.CapPrm, p.CapBnd)
	}
	if p.NoNewPrivs != "1" {
		t.Errorf("NoNewPrivs is %q", p.NoNewPrivs)
	}
	for _, f := range p.Files {
		if strings.Contains(f, "/net/tun") {
			t.Errorf("it has opened %s", f)
		}
	}
	for _, f := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", w.exit.PID, f))
		if err != nil || strings.Contains(string(b), w.config.Key.Reveal()) {
			t.Errorf("the private key is in %s, or: %v", f, err)
		}
	}
	if strings.Contains(w.exit.Log(), w.config.Key.Reveal()) {
		t.Error("it printed the private key")
	}
	if children := w.exit.Children(); len(children) > 0 {
		t.Errorf("it has child processes: %v", children)
	}
	if err := w.exit.Stop(10 * time.Second); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// TestFigures prints what a user will compare, and fails only where something is badly wrong: the machine that runs the
// tests may be slow and busy.
func TestFigures(t *testing.T) {
	t.Parallel()
	w := &world{Internet: lab.NewInternet(t)}
	w.echoServers(t)
	w.keys = w.Keys()
	w.config = w.ExitConfig(w.keys, "AllowRouting = yes", "")
	kind := lab.ExitKind(*exitFlag)

	w.client = w.StockClient(t, w.C, w.keys.C, w.config.Key.Public())
	start := time.Now()
	w.exit = w.X.StartExit(t, kind, w.config)
	bound := time.Since(start)
	c := dialTCP(t, w.C, families[0], lab.Port(lab.Server[0], 7))
	if err := turn(c); err != nil {
		t.Fatal(err)
	}
	first := time.Since(start)
	c.Close()
	t.Logf("start to bound port: %v", bound.Round(time.Millisecond))
	t.Logf("start to first packet: %v (goal: under 300ms)", first.Round(time.Millisecond))
	if first > 3*time.Second {
		t.Error("that is far too long")
	}

	p, err := w.exit.Proc()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("idle resident memory: %.1f MB (goal: under 40)", float64(p.RSS)/1024)
	if p.RSS > 80<<10 && !lab.Racing() {
		t.Error("that is far too much")
	}
	if kind != lab.ExitCulvert {
		return
	}
	info, err := os.Stat(lab.Culvert.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("binary: %.1f MB (goal: under 25)", float64(info.Size())/1e6)
	if info.Size() > 40e6 {
		t.Error("that is far too large")
	}
}
