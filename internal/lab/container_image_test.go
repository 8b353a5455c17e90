//go:build linux

package lab_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestContainer runs the image as docs/sidecar.md says, with a configuration file.
func TestContainer(t *testing.T) {
	t.Parallel()
	lab.Need(t, "podman", "runc", "busybox", "ping")
	w := newPodWorld(t)
	t.Run("the image holds what it needs and no more", w.imageHolds)
	t.Run("as an ordinary user with a read-only root", w.ordinaryUser)
	t.Run("healthy while its relay is there", w.healthFollowsRelay)
	t.Run("a first run without any configuration", w.firstRun)
	t.Run("as any user", w.anyUser)
	t.Run("nothing written beside the state folder", w.writesNothing)
	t.Run("page", func(t *testing.T) { w.sidecarOf(t, "page", pageExample(t)) })
	t.Run("compose", func(t *testing.T) { w.sidecarOf(t, "compose", composeExample(t)) })
	t.Run("kubernetes", func(t *testing.T) { w.sidecarOf(t, "kubernetes", kubernetesExample(t)) })
}

func (w *podWorld) imageHolds(t *testing.T) {
	root := strings.TrimSpace(w.podman.Run(t, "image", "mount", w.culvert))
	defer w.podman.Run(t, "image", "umount", w.culvert)
	var files []string
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		files = append(files, fmt.Sprintf("%s %v %d:%d", path, info.Mode()&^fs.ModeDir, owner.Uid, owner.Gid))
		return nil
	})
	want := []string{
		". -r-xr-xr-x 0:0", "culvert -rwxr-xr-x 0:0",
		"etc -rwxr-xr-x 0:0", "etc/ssl -rwxr-xr-x 0:0", "etc/ssl/certs -rwxr-xr-x 0:0", "etc/ssl/certs/ca-certificates.crt -rw-r--r-- 0:0",
		"var -rwxr-xr-x 0:0", "var/lib -rwxr-xr-x 0:0", "var/lib/culvert trwxrwxrwx 65532:65532",
	}
	if err != nil || !slices.Equal(files, want) {
		t.Errorf("files of the image (%v):\n%s\nwant:\n%s", err, strings.Join(files, "\n"), strings.Join(want, "\n"))
	}
	authorities(t, filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))

	var images []struct {
		Size   int64
		Config struct {
			User            string
			Entrypoint, Cmd []string
			Labels          map[string]string
		}
		HealthCheck struct{ Test []string }
	}
	if err := json.Unmarshal([]byte(w.podman.Run(t, "image", "inspect", w.culvert)), &images); err != nil || len(images) != 1 {
		t.Fatalf("podman image inspect: %v, %d images", err, len(images))
	}
	i := images[0]
	t.Logf("image: %.1f MB", float64(i.Size)/1e6)
	if i.Size > 25e6 {
		t.Error("that is too large")
	}
	if i.Config.User != "65532:65532" || !slices.Equal(i.Config.Entrypoint, []string{"/culvert"}) || !slices.Equal(i.Config.Cmd, []string{"up"}) {
		t.Errorf("it runs %q %q as %q", i.Config.Entrypoint, i.Config.Cmd, i.Config.User)
	}
	if !slices.Equal(i.HealthCheck.Test, []string{"CMD", "/culvert", "health"}) {
		t.Errorf("health check %q", i.HealthCheck.Test)
	}
	version, err := w.podman.Do(lab.ContainerConfig{Name: "version", Image: w.culvert, Node: w.pod, Args: []string{"version", "--json"}})
	if label := i.Config.Labels["org.opencontainers.image.version"]; err != nil || label == "" || !strings.Contains(version, fmt.Sprintf("%q", label)) {
		t.Errorf("the label says version %q, the binary %s %v", label, version, err)
	}
}

// authorities checks that a file has certificate authorities that Go takes.
func authorities(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	taken := 0
	for block, rest := pem.Decode(bytes.TrimSpace(text)); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); err == nil {
			taken++
		}
	}
	if taken < 50 {
		t.Errorf("%d certificate authorities", taken)
	}
}

func (w *podWorld) ordinaryUser(t *testing.T) {
	endpoint := fmt.Sprintf("Endpoint = %s:%d\nPersistentKeepalive = 25\nAllowRouting = yes", podPeerOuter, lab.ExitPort)
	c := w.sidecar(t, "ordinary", w.conf(endpoint))
	start := time.Now()
	x := w.podman.Start(t, c)
	lab.WaitFor(t, 20*time.Second, "an echo from the sidecar", func() bool { return echoes(w.peer, podMesh) })
	t.Logf("started to first echo: %v", time.Since(start).Round(time.Millisecond))
	turns(t, x, "healthy")

	s, err := x.State()
	if err != nil {
		t.Fatal(err)
	}
	p, err := (&lab.Process{PID: s.PID}).Proc()
	const none = "0000000000000000"
	if err != nil || p.CapEff != none || p.CapPrm != none || p.CapBnd != none || p.NoNewPrivs != "1" {
		t.Errorf("the process: %+v %v", p, err)
	}
	t.Logf("resident memory: %.1f MB", float64(p.RSS)/1024)
	if info, err := os.Stat(fmt.Sprintf("/proc/%d", s.PID)); err != nil || info.Sys().(*syscall.Stat_t).Uid != podUser {
		t.Errorf("it runs as %+v %v", info, err)
	}
	if out, err := x.Exec("/culvert", "status"); err != nil || !strings.Contains(out, "sidecar") {
		t.Errorf("status: %v\n%s", err, out)
	}
	if got := names(t, c.State); got != "control.sock control.sock.lock" {
		t.Errorf("the state folder has %s", got)
	}
	stops(t, x)
	for _, sign := range []string{"read-only", "permission denied", w.podKey.Reveal(), "level=ERROR"} {
		if strings.Contains(x.Log(), sign) {
			t.Errorf("it printed %q", sign)
		}
	}
}

func (w *podWorld) healthFollowsRelay(t *testing.T) {
	relay := w.v.StartRelay(t, fmt.Sprintf("[Relay]\nName = relay\nListen = %s:443\nURL = https://%[1]s\nAllow = %s pod\n", podRelayed, w.podKey.Public()))
	c := w.sidecar(t, "health", w.conf("")+clientLines(t, relay, "Relay"))
	// Judged at once. Podman takes the image's times, and not these, unless the command is given too.
	c.Options = []string{`--health-cmd=["/culvert", "health"]`, "--health-start-period=0s", "--health-retries=1"}
	x := w.podman.Start(t, c)
	turns(t, x, "healthy")
	relay.Kill()
	turns(t, x, "unhealthy")
	relay.Start(t)
	turns(t, x, "healthy")
	stops(t, x)
}

// firstRun starts the image as it is, on a volume that the engine makes, twice.
func (w *podWorld) firstRun(t *testing.T) {
	c := lab.ContainerConfig{Name: "first", Image: w.culvert, Node: w.pod, Options: []string{"--volume=first:/var/lib/culvert"}}
	var keys [2]string
	for i := range keys {
		x := w.podman.Start(t, c)
		turns(t, x, "healthy")
		out, err := x.Exec("/culvert", "status", "--json")
		var status struct {
			PublicKey string `json:"public_key"`
		}
		if err == nil {
			err = json.Unmarshal([]byte(out), &status)
		}
		if keys[i] = status.PublicKey; err != nil || keys[i] == "" {
			t.Fatalf("status: %v\n%s", err, out)
		}
		stops(t, x)
		w.podman.Run(t, "rm", x.Name)
	}
	if keys[0] != keys[1] {
		t.Errorf("two runs on one volume have the keys %s and %s", keys[0], keys[1])
	}
}

// anyUser starts the image as a cluster does that gives each project a user of its own: with neither a volume nor a tmpfs, and with one.
func (w *podWorld) anyUser(t *testing.T) {
	for name, options := range map[string][]string{"volume": nil, "tmpfs": {"--tmpfs=/var/lib/culvert"}} {
		c := lab.ContainerConfig{Name: "any-" + name, Image: w.culvert, Node: w.pod, Options: append(options, "--user=123456:0")}
		x := w.podman.Start(t, c)
		turns(t, x, "healthy")
		stops(t, x)
	}
}

// writesNothing lets the product write wherever it likes, and sees that it does so in its state folder only, and where it is told to.
func (w *podWorld) writesNothing(t *testing.T) {
	const log = "/flows.jsonl"
	c := w.sidecar(t, "writes", w.conf("[Control]\nFlowLog = "+log))
	c.Options = []string{"--read-only=false", "--user=0:0", "--cap-add=dac_override"}
	c.State = "" // a volume, which is no part of the root
	x := w.podman.Start(t, c)
	turns(t, x, "healthy")
	for _, command := range [][]string{{"status"}, {"conntrack", "-L"}, {"reload"}, {"check"}} {
		if _, err := x.Exec(append([]string{"/culvert"}, command...)...); err != nil {
			t.Error(err)
		}
	}
	stops(t, x)
	if list, err := x.Written(); err != nil || !slices.Equal(list, []string{log}) {
		t.Errorf("written: %q %v, want the flow log alone", list, err)
	}
}
