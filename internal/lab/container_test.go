//go:build linux

package lab_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/wgkey"
)

// podWorld is a pod behind a router that translates addresses, and what the pod's sidecar meets outside:
//
//	pod ── gw ─┬─ peer  stock WireGuard, 100.64.0.2 in the mesh
//	           └─ v     a relay
//
// The router knows no way into the mesh, so that what reaches it from the pod goes through the sidecar.
type podWorld struct {
	*lab.Net
	pod, gw, peer, v *lab.Node

	podman           *lab.Podman
	podKey, peerKey  wgkey.Private
	culvert, busybox string // images
}

const (
	podMesh, podPeerMesh     = "100.64.0.1", "100.64.0.2"
	podPeerOuter, podRelayed = "198.18.1.2", "198.18.2.2"
	podUser                  = 65532
)

func newPodWorld(t *testing.T) *podWorld {
	t.Helper()
	productOnly(t, "it comes in no image")
	w := &podWorld{Net: lab.New(t), culvert: "localhost/culvert:lab", busybox: "localhost/busybox:lab"}
	w.pod, w.gw, w.peer, w.v = w.Node("pod"), w.Node("gw"), w.Node("peer"), w.Node("v")
	w.Wire(w.pod, w.gw, lab.Addrs("10.0.0.2/24"), lab.Addrs("10.0.0.1/24"))
	w.Wire(w.peer, w.gw, lab.Addrs(podPeerOuter+"/24"), lab.Addrs("198.18.1.1/24"))
	w.Wire(w.v, w.gw, lab.Addrs(podRelayed+"/24"), lab.Addrs("198.18.2.1/24"))
	for node, via := range map[*lab.Node]string{w.pod: "10.0.0.1", w.peer: "198.18.1.1", w.v: "198.18.2.1"} {
		node.Route("default", via)
	}
	w.gw.Masquerade("peer", "v")
	w.podKey, w.peerKey = w.Key(), w.Key()
	w.peer.Stock(t, lab.Tunnel{
		Key: w.peerKey, Addrs: []string{podPeerMesh + "/24"}, Port: lab.ExitPort,
		Peers: []lab.TunnelPeer{{Key: w.podKey.Public(), AllowedIPs: podMesh + "/32"}},
	})
	mesh := w.peer.Listen(t, lab.Port(podPeerMesh, 80))
	go http.Serve(mesh, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "page in the mesh") }))

	w.podman = lab.NewPodman(t)
	start := time.Now()
	w.podman.BuildCulvert(t, w.culvert)
	t.Logf("image built in %v", time.Since(start).Round(time.Millisecond))
	w.podman.BuildBusybox(t, w.busybox)
	return w
}

// file writes a file that the containers' user alone may read.
func (w *podWorld) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	err := os.WriteFile(path, []byte(content), 0o400)
	if err == nil {
		err = os.Chown(path, podUser, podUser)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// state makes an empty state folder.
func (w *podWorld) state(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chown(dir, podUser, podUser); err != nil {
		t.Fatal(err)
	}
	return dir
}

// conf is a configuration of the sidecar in a file, with the peer by its endpoint. Its key lies in a file beside it.
func (w *podWorld) conf(more string) string {
	return fmt.Sprintf("[Interface]\nName = sidecar\nPrivateKeyFile = /run/secrets/key\nAddress = %s/32\n"+
		"[Peer]\nName = peer\nPublicKey = %s\nAllowedIPs = %s/32\n%s\n", podMesh, w.peerKey.Public(), podPeerMesh, more)
}

// sidecar is a container of the product in the pod, with that configuration.
func (w *podWorld) sidecar(t *testing.T, name, conf string) lab.ContainerConfig {
	t.Helper()
	return lab.ContainerConfig{
		Name: name, Image: w.culvert, Node: w.pod, State: w.state(t),
		Files: map[string]string{
			"/etc/culvert/culvert.conf": w.file(t, "culvert.conf", conf),
			"/run/secrets/key":          w.file(t, "key", w.podKey.Reveal()+"\n"),
		},
	}
}

// turns waits until the health check has the given result.
func turns(t *testing.T, c *lab.Container, want string) {
	t.Helper()
	start, got := time.Now(), ""
	lab.WaitFor(t, 30*time.Second, "container "+c.Name+" to be "+want, func() bool {
		var err error
		if got, err = c.CheckHealth(); err != nil {
			t.Fatal(err)
		}
		return got == want
	})
	t.Logf("%s after %v", want, time.Since(start).Round(time.Millisecond))
}

// stops ends a container as a cluster would, and fails the test unless it ends by itself with status 0.
func stops(t *testing.T, c *lab.Container) {
	t.Helper()
	const grace = 8 * time.Second // clusters give 30, engines 10
	start := time.Now()
	if status, err := c.Stop(grace); err != nil || status != 0 {
		t.Errorf("after SIGTERM: exit status %d, %v", status, err)
	}
	took := time.Since(start)
	if took >= grace {
		t.Errorf("it did not stop by itself in %v", grace)
	}
	t.Logf("stopped after %v", took.Round(time.Millisecond))
}

// names lists a folder.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}
