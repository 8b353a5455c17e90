package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A node runs from variables and options alone: it writes no configuration, and a reload keeps what the options ask for.
func TestUpWithoutAFile(t *testing.T) {
	if _, err := os.Stat("/etc/culvert/culvert.conf"); err == nil {
		t.Skip("SKIP: this machine has a configuration in /etc/culvert")
	}
	dir, err := os.MkdirTemp("", "culvert") // short, for the sockets' sake
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for name, value := range map[string]string{
		"HOME": filepath.Join(dir, "home"), "XDG_CONFIG_HOME": "", "XDG_RUNTIME_DIR": "", "CULVERT_CONFIG": "", "CULVERT_SOCKET": "",
		"CULVERT_STATE":                 filepath.Join(dir, "state"),
		"CULVERT_INTERFACE_NAME":        "sidecar",
		"CULVERT_INTERFACE_ADDRESS":     "100.64.0.1/32",
		"CULVERT_HTTP_LISTEN":           "unix:" + filepath.Join(dir, "http"),
		"CULVERT_PEER_1_NAME":           "db",
		"CULVERT_PEER_1_PUBLIC_KEY":     "tenWwkouosPtk7skeC+IFv/HSdO5gc4QYkELrvQgqDw=",
		"CULVERT_PEER_1_ALLOWED_IPS":    "100.64.0.2/32",
		"CULVERT_INTERFACE_PRIVATE_KEY": "WNRzWjQ7CEpXoEDFZ3TMaiaqeVbW4GSqXKmy7XGWbmM=",
	} {
		t.Setenv(name, value)
	}
	// A process of its own: culvert up gives up privileges of the whole process.
	args := []string{"up", "-D", filepath.Join(dir, "socks"), "-E", "db", "-L", filepath.Join(dir, "db.sock") + ":db:5432", "-R", "8080:127.0.0.1:80"}
	culvert := exec.Command("culvert", args...)
	log, err := culvert.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := culvert.Start(); err != nil {
		t.Fatal(err)
	}
	defer culvert.Process.Kill() // of no effect once it has ended
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(log); s.Scan(); {
			lines <- s.Text()
		}
	}()
	awaitLine(t, lines, `msg="node is up" name=sidecar`)
	for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		for _, socket := range []string{"socks", "http", "db.sock"} {
			c, err := net.Dial("unix", filepath.Join(dir, socket))
			if err != nil {
				t.Errorf("before %v: %v", signal, err)
				continue
			}
			c.Close()
		}
		if err := culvert.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		awaitLine(t, lines, map[syscall.Signal]string{syscall.SIGHUP: "configuration reloaded", syscall.SIGTERM: "node is down"}[signal])
	}
	for range lines { // until the end
	}
	if err := culvert.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "home")); err == nil {
		t.Error("something was written to the home folder")
	}
}

func awaitLine(t *testing.T, lines <-chan string, part string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-lines:
			if strings.Contains(line, part) {
				return
			}
			if !ok {
				t.Fatalf("the log ends before %q", part)
			}
			t.Log(line)
		case <-timeout:
			t.Fatalf("%q was not logged", part)
		}
	}
}
