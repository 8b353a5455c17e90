//go:build unix

package stream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

const childVariable = "CULVERT_STREAM_TEST_CHILD"

// TestNoDescriptorsLeft runs in a process of its own, which has few descriptors: clients that come when there are none are
// served once there are, and the process lives.
func TestNoDescriptorsLeft(t *testing.T) {
	if os.Getenv(childVariable) != "" {
		withFewDescriptors(t)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^TestNoDescriptorsLeft$", "-test.v")
	cmd.Env = append(os.Environ(), childVariable+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "all served") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func withFewDescriptors(t *testing.T) {
	const few = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: few, Max: few}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	l := listen(t)
	s := serve(t, ServerConfig{Name: "front", Handle: echo, Logger: slog.New(slog.NewTextHandler(&log, nil))}, l)
	var clients []net.Conn
	for { // both ends are of this process, so that the last clients have no other end
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		c.SetDeadline(time.Now().Add(patience))
		clients = append(clients, c)
	}
	for begin := time.Now(); s.Stats().Pauses < 3; time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatalf("accepting does not pause: %+v with %d clients", s.Stats(), len(clients))
		}
	}
	served := s.Stats().Accepted
	if int(served) >= len(clients) {
		t.Fatalf("all %d clients are served already", len(clients))
	}
	for _, c := range clients { // one leaves, and so the next one is served
		fmt.Fprint(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("%v after %d served of %d", err, s.Stats().Accepted, len(clients))
		}
		c.Close()
	}
	if n := strings.Count(log.String(), "accepting pauses"); n != 1 {
		t.Errorf("%d complaints, want 1:\n%s", n, &log)
	}
	t.Logf("all served: %d at first, %d in the end", served, s.Stats().Accepted)
}
