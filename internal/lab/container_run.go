//go:build linux

package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// ContainerConfig describes a container. It has a read-only root, no capability and no way to gain one.
type ContainerConfig struct {
	Name    string // unique in the engine
	Image   string
	Args    []string
	Env     []string
	Node    *Node             // whose network it is in
	With    *Container        // or that of another container, as in a pod
	Files   map[string]string // path in the container: file or folder of the laboratory, read-only
	State   string            // folder of the laboratory that is the container's /var/lib/culvert
	Options []string          // further ones of podman run
}

// Container is a container that was started in the background. It goes with its engine.
type Container struct {
	Name   string
	podman *Podman
	mounts []string // where it has files of the laboratory
}

// ContainerState is what the engine tells of a container.
type ContainerState struct {
	Status   string // running, exited
	ExitCode int
	PID      int `json:"Pid"`
	Health   struct{ Status string }
}

// Start runs a container in the background. Its output is shown if the test fails.
func (p *Podman) Start(tb TB, c ContainerConfig) *Container {
	tb.Helper()
	p.Run(tb, p.args(c, "--detach")...)
	x := &Container{Name: c.Name, podman: p, mounts: slices.Collect(maps.Keys(c.Files))}
	tb.Cleanup(func() {
		for _, sign := range []string{"panic:", "fatal error:"} {
			if strings.Contains(x.Log(), sign) {
				tb.Errorf("container %s printed %q", c.Name, sign)
			}
		}
		if tb.Failed() {
			tb.Logf("container %s printed:\n%s", c.Name, tail(x.Log(), 8000))
		}
	})
	return x
}

// Do runs a container to its end and returns what it printed to stdout, and its exit status as an error.
func (p *Podman) Do(c ContainerConfig) (string, error) {
	return p.Exec("podman", p.args(c, "--rm")...)
}

func (p *Podman) args(c ContainerConfig, how string) []string {
	args := []string{
		"run", how, "--name=" + c.Name, "--pull=never", "--cgroup-parent=/" + p.cgroup,
		"--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges",
	}
	switch {
	case c.Node != nil:
		args = append(args, "--network=ns:"+c.Node.ns.path)
	case c.With != nil:
		args = append(args, "--network=container:"+c.With.Name)
	}
	for _, kv := range c.Env {
		args = append(args, "--env="+kv)
	}
	for to, from := range c.Files {
		args = append(args, "--volume="+from+":"+to+":ro")
	}
	if c.State != "" {
		args = append(args, "--volume="+c.State+":/var/lib/culvert")
	}
	args = append(args, c.Options...)
	return append(append(args, c.Image), c.Args...)
}

// Exec runs a program inside the container and returns what it printed to stdout.
func (c *Container) Exec(args ...string) (string, error) {
	return c.podman.Exec("podman", append([]string{"exec", c.Name}, args...)...)
}

// State asks the engine how the container is.
func (c *Container) State() (s ContainerState, err error) {
	out, err := c.podman.Exec("podman", "inspect", "--format={{json .State}}", c.Name)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// CheckHealth runs the health check of the image, as the engine's timer would, and returns the state that comes of it:
// starting, healthy or unhealthy. A container that does not run is an error.
func (c *Container) CheckHealth() (string, error) {
	_, failed := c.podman.Exec("podman", "healthcheck", "run", c.Name)
	s, err := c.State()
	if err == nil && (s.Status != "running" || s.Health.Status == "") {
		err = fmt.Errorf("container %s is %s: %w", c.Name, s.Status, failed)
	}
	return s.Health.Status, err
}

// Log returns what the container has printed so far.
func (c *Container) Log() string {
	out, err := c.podman.Exec("sh", "-c", `exec podman logs "$1" 2>&1`, "sh", c.Name) // logs keeps the two streams apart
	if err != nil {
		return err.Error()
	}
	return out
}

// Written lists the files of the container's root that are not of the image, without those that stand where something is
// mounted. A root that may be written to is --read-only=false among the options.
func (c *Container) Written() (list []string, err error) {
	out, err := c.podman.Exec("podman", "diff", "--format=json", c.Name)
	if err != nil {
		return nil, err
	}
	var diff struct{ Changed, Added, Deleted []string }
	if err := json.Unmarshal([]byte(out), &diff); err != nil {
		return nil, err
	}
	places := append([]string{"/etc/passwd", "/etc/group"}, c.mounts...) // made to mount something there
	for _, name := range append(append(diff.Changed, diff.Added...), diff.Deleted...) {
		if !slices.ContainsFunc(places, func(place string) bool { return place == name || strings.HasPrefix(place, name+"/") }) {
			list = append(list, name)
		}
	}
	return list, nil
}

// Stop asks the container to end, kills it after grace, and returns its exit status.
func (c *Container) Stop(grace time.Duration) (int, error) {
	if _, err := c.podman.Exec("podman", "stop", fmt.Sprintf("--time=%d", int(grace.Seconds())), c.Name); err != nil {
		return 0, err
	}
	s, err := c.State()
	if err == nil && !strings.EqualFold(s.Status, "exited") {
		err = fmt.Errorf("container %s is %s after it was stopped", c.Name, s.Status)
	}
	return s.ExitCode, err
}
