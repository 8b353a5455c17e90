//go:build linux

package lab_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// wgQuick is what a wg-quick file says, as far as the lab's client needs it.
type wgQuick struct {
	addresses, dns []string
	mtu            string
	endpoint       string
	conf           string // what remains for wg setconf
}

// readWGQuick does what wg-quick does with a file: it keeps some lines and leaves the others to wg.
func readWGQuick(text string) (q wgQuick) {
	list := func(s string) (l []string) {
		for v := range strings.SplitSeq(s, ",") {
			l = append(l, strings.TrimSpace(v))
		}
		return l
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, "=")
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "address":
			q.addresses = append(q.addresses, list(value)...)
		case "dns":
			q.dns = append(q.dns, list(value)...)
		case "mtu":
			q.mtu = value
		case "endpoint":
			q.endpoint = value
			q.conf += line
		default:
			q.conf += line
		}
	}
	return q
}

// TestFirstRun is what somebody does after a fresh clone: start the node without any configuration, give the file it
// prints to a WireGuard client, and look at a page.
func TestFirstRun(t *testing.T) {
	t.Parallel()
	lab.Need(t, "curl")
	productOnly(t, "stock WireGuard does not configure itself")
	w := lab.NewInternet(t)
	newNameserver(t, w.S, lab.NameServer[0]).set("www.example.", lab.Server[0], lab.Server[1])
	w.X.Resolver(lab.NameServer[0])
	for _, f := range families {
		httpServer(t, w.S, lab.Port(lab.Server[f.i], 80), "welcome\n")
		w.C.Route(lab.ExitWAN[f.i], lab.ExitToC[f.i])
	}
	home := lab.UnprivilegedDir(t)
	// The state has to be named, since uid 0 of a rootless laboratory may be the machine's root, who can write to /var.
	node := w.X.StartUnprivileged(t, []string{"HOME=" + home, "XDG_STATE_HOME=" + home + "/state"}, lab.Culvert.Path(), "up")

	var file string
	printed := regexp.MustCompile(`(/\S+\.conf)\b`)
	lab.WaitFor(t, 10*time.Second, "the path of a device's configuration", func() bool {
		for _, m := range printed.FindAllString(node.Log(), -1) {
			if b, err := os.ReadFile(m); err == nil && strings.Contains(string(b), "AllowedIPs = 0.0.0.0/0") {
				file = m
			}
		}
		return file != "" || !node.Alive()
	})
	if !node.Alive() {
		t.Fatal("the node ended")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	q := readWGQuick(string(text))

	phone := w.C.StockDevice(t)
	phone.Set(t, q.conf)
	for _, a := range q.addresses {
		if !strings.Contains(a, "/") {
			t.Fatalf("Address %q has no prefix length", a)
		}
		w.C.Addr(phone.Dev, a)
	}
	if q.mtu == "" {
		q.mtu = "1420"
	}
	w.C.IP("link", "set", "dev", phone.Dev, "mtu", q.mtu, "up")
	w.C.Route("default", phone.Dev)
	w.C.IP("-6", "route", "add", "::/0", "dev", phone.Dev)
	if len(q.dns) == 0 {
		t.Error("the device's file names no DNS server")
	}
	w.C.Resolver(q.dns...)

	for _, family := range []string{"-4", "-6"} {
		if got := w.C.Run(t, "curl", "-sS", family, "--max-time", "10", "http://www.example/"); got != "welcome\n" {
			t.Errorf("curl %s: got %q", family, got)
		}
	}
	if secret := regexp.MustCompile(`PrivateKey\s*=\s*(\S+)`).FindStringSubmatch(string(text)); secret == nil || strings.Contains(node.Log(), secret[1]) {
		t.Error("the device's file has no private key, or the node printed it")
	}
	filepath.WalkDir(home, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			b, _ := os.ReadFile(path)
			info, err := d.Info()
			if strings.Contains(string(b), "PrivateKey") && (err != nil || info.Mode().Perm() != 0o600) {
				t.Errorf("%s holds a key and has mode %v", path, info.Mode())
			}
		}
		return err
	})
	if err := node.Stop(10 * time.Second); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}
