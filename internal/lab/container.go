//go:build linux

package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Podman is a container engine of one test: podman with runc, whose images, containers, locks and cgroups are its own and
// go with the test. It needs neither a registry nor systemd. Its containers run in the network of a Node.
type Podman struct {
	dir    string // images, containers and locks, in the world's own /run
	cgroup string // parent of the containers' control groups
}

// NewPodman makes an engine, or skips the test. Call it in a laboratory, after New.
func NewPodman(tb TB) *Podman {
	tb.Helper()
	if !realRoot() {
		tb.Skipf("containers run as users of their own, and the laboratory's user namespace has but one")
	}
	Need(tb, "podman", "runc", "conmon")
	dir, err := os.MkdirTemp("", "podman")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	p := &Podman{dir: dir, cgroup: "culvert-lab-" + filepath.Base(dir)}
	tb.Cleanup(func() { p.close(tb) })
	if err := p.configure(); err != nil {
		tb.Fatalf("configure podman: %v", err)
	}
	return p
}

// configure writes what podman reads in place of the machine's files. The limits are what runc may set without
// CAP_SYS_RESOURCE, and locks are files so that those of the machine's own podman in /dev/shm are left alone.
func (p *Podman) configure() error {
	files := map[string]string{
		"containers.conf": `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
tmp_dir = "%[1]s/tmp"
volume_path = "%[1]s/volumes"
[network]
network_backend = "cni"
network_config_dir = "%[1]s/net.d"
`,
		"storage.conf": "[storage]\ndriver = \"vfs\"\ngraphroot = \"%[1]s/storage\"\nrunroot = \"%[1]s/run\"\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(p.dir, name), fmt.Appendf(nil, text, p.dir), 0o600); err != nil {
			return err
		}
	}
	// Where blobs came from is noted here, whatever is configured. The mount hides it from the world alone.
	const cache = "/var/lib/containers"
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return err
	}
	return unix.Mount("podman", cache, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700")
}

// Env is what makes podman, and programs that call it, use this engine.
func (p *Podman) Env() []string {
	return []string{
		"CONTAINERS_CONF=" + filepath.Join(p.dir, "containers.conf"),
		"CONTAINERS_STORAGE_CONF=" + filepath.Join(p.dir, "storage.conf"),
	}
}

// Exec runs a program that uses the engine and returns what it printed to stdout. The error has what it printed to stderr.
func (p *Podman) Exec(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(cmd.Environ(), p.Env()...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(errs.String(), 4000))
	}
	return out.String(), nil
}

// Run runs podman and fails the test unless it succeeds. It returns what podman printed to stdout.
func (p *Podman) Run(tb TB, args ...string) string {
	tb.Helper()
	out, err := p.Exec("podman", args...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return out
}

// BuildCulvert builds the product's image as its users do who have no registry.
func (p *Podman) BuildCulvert(tb TB, image string) {
	tb.Helper()
	for _, file := range []string{"../../Dockerfile", "../../scripts/build-image"} {
		os.Stat(file) // as in touchSources
	}
	if out, err := p.Exec("../../scripts/build-image", image); err != nil {
		tb.Fatalf("%v\n%s", err, out)
	}
}

// BuildBusybox builds an image of Debian's static busybox, run by an ordinary user.
func (p *Podman) BuildBusybox(tb TB, image string) {
	tb.Helper()
	Need(tb, "busybox")
	context := filepath.Join(p.dir, "busybox")
	program, err := exec.LookPath("busybox")
	var content []byte
	if err == nil {
		content, err = os.ReadFile(program)
	}
	if err == nil {
		err = os.Mkdir(context, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(context, "busybox"), content, 0o755)
	}
	if err == nil {
		text := "FROM scratch\nCOPY busybox /\nUSER 65532:65532\nENTRYPOINT [\"/busybox\"]\n"
		err = os.WriteFile(filepath.Join(context, "Containerfile"), []byte(text), 0o644)
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
	p.Run(tb, "build", "--quiet", "--pull=never", "--format=docker", "--tag", image, context)
}

// close ends the containers and removes everything. What the machine itself would keep is the control groups.
func (p *Podman) close(tb TB) {
	if _, err := p.Exec("podman", "rm", "--all", "--force", "--time=0"); err != nil {
		tb.Errorf("%v", err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		tops, _ := filepath.Glob(pattern + p.cgroup) // the pattern is well formed
		for _, top := range tops {
			if err := removeGroups(top); err != nil {
				tb.Errorf("%v", err)
			}
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		tb.Errorf("%v", err)
	}
}

// removeGroups removes a control group and those in it; their files are the kernel's.
func removeGroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}
