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

// run makes the example's containers those of the world. What the example cannot know is set here: the peer's key and where it is.
func (w *podWorld) run(t *testing.T, name string, e example) (sidecar, app *lab.Container) {
	t.Helper()
	page := t.TempDir()
	err := os.Chmod(page, 0o755)
	if err == nil {
		err = os.WriteFile(page+"/index.html", []byte("page of the app"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, a := e.sidecar, e.app
	s.Name, s.Image, s.Node = name+"-sidecar", w.culvert, w.pod
	s.Files = map[string]string{e.key: w.file(t, "key", w.podKey.Reveal()+"\n")}
	s.Env = append(s.Env, "CULVERT_PEER_1_PUBLIC_KEY="+w.peerKey.Public().String(), "CULVERT_PEER_1_ENDPOINT="+lab.Port(podPeerOuter, lab.ExitPort))
	sidecar = w.podman.Start(t, s)
	turns(t, sidecar, "healthy")

	a.Name, a.Image, a.With = name+"-app", w.busybox, sidecar
	a.Files = map[string]string{e.page: page}
	app = w.podman.Start(t, a)
	lab.WaitFor(t, 10*time.Second, "the app to listen", func() bool { return w.pod.Bound("tcp", 8000) })
	return sidecar, app
}

// sidecarOf has an app reach the mesh, and be reached from there, by nothing but a sidecar whose only file is its key.
func (w *podWorld) sidecarOf(t *testing.T, name string, e example) {
	lab.Need(t, "curl")
	sidecar, app := w.run(t, name, e)
	for _, probe := range e.probes {
		if _, err := sidecar.Exec(probe...); err != nil {
			t.Errorf("probe %q: %v", probe, err)
		}
	}
	const fromMesh, fromApp = "page in the mesh", "page of the app"
	for _, host := range []string{podPeerMesh, "office.mesh", "office"} {
		if out, err := fetch(app, "http://"+host+"/"); err != nil || out != fromMesh {
			t.Errorf("the app asks %s: %q %v", host, out, err)
		}
		if out, err := w.pod.Exec("", "curl", "-sS", "-m", "10", "--socks5-hostname", "127.0.0.1:1080", "http://"+host+"/"); err != nil || out != fromMesh {
			t.Errorf("by SOCKS5 %s: %q %v", host, out, err)
		}
	}
	if out, err := w.peer.Exec("", "curl", "-sS", "-m", "10", "http://"+podMesh+"/"); err != nil || out != fromApp {
		t.Errorf("the peer asks the app: %q %v", out, err)
	}
	if out, err := fetch(app, "http://"+podPeerMesh+"/", "-Y", "off"); err == nil {
		t.Errorf("the app reaches the mesh past the sidecar: %q", out)
	}
	w.keepsSecret(t, sidecar)
	stops(t, sidecar)
	if out, err := fetch(app, "http://"+podPeerMesh+"/"); err == nil {
		t.Errorf("the app reaches the mesh without a sidecar: %q", out)
	}
	w.podman.Run(t, "rm", "--force", "--time=0", app.Name)
}

// fetch gets a page inside an app's container. Nothing here is silent, so that it needs no limit of time; Debian's static
// wget crashes if it is given one.
func fetch(app *lab.Container, url string, options ...string) (string, error) {
	args := append([]string{"/busybox", "wget", "-q", "-O", "-"}, options...)
	return app.Exec(append(args, url)...)
}

// keepsSecret checks that the private key is nowhere but in its file.
func (w *podWorld) keepsSecret(t *testing.T, c *lab.Container) {
	t.Helper()
	s, err := c.State()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"cmdline", "environ"} {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", s.PID, f)); err != nil || strings.Contains(string(b), w.podKey.Reveal()) {
			t.Errorf("the private key is in %s, or: %v", f, err)
		}
	}
	if strings.Contains(c.Log(), w.podKey.Reveal()) {
		t.Error("it printed the private key")
	}
}
