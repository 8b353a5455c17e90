//go:build unix

package stream

import (
	"context"
	"errors"
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

// withFewDescriptors has no clock that a busy machine could run out of, other than that which ends the process.
func withFewDescriptors(t *testing.T) {
	const few = 40
	l := listen(t) // and with it what the runtime needs
	spare := spareFiles(t)
	most := uint64(spare[len(spare)-1].Fd()) + few
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: most, Max: most}); err != nil {
		t.Fatal(err)
	}
	var log logged
	s := serve(t, ServerConfig{Name: "front", Handle: echo, Logger: slog.New(slog.NewTextHandler(&log, nil))}, l)
	clients := crowd(t, s, l, spare)
	served := s.Stats().Accepted
	for _, c := range clients { // one leaves, and so the next one is served
		if err := echoed(c); err != nil {
			t.Fatalf("%v after %d served of %d", err, s.Stats().Accepted, len(clients))
		}
		c.Close()
	}
	if n := strings.Count(log.String(), "accepting pauses"); n != 1 {
		t.Errorf("%d complaints, want 1:\n%s", n, log.String())
	}
	t.Logf("all served: %d at first, %d in the end", served, s.Stats().Accepted)
}

// spareFiles are some that can be closed.
func spareFiles(t *testing.T) (files []*os.File) {
	for range 4 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// crowd connects until there are no descriptors left and accepting pauses. Both ends are of this process: with an even number of
// descriptors and a quick server every client is served. Then a spare one is for a client more, whose other end has none.
func crowd(t *testing.T, s *Server, l net.Listener, spare []*os.File) (clients []net.Conn) {
	t.Helper()
	for ; s.Stats().Pauses < 3; time.Sleep(time.Millisecond) {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			clients = append(clients, c)
		} else if !errors.Is(err, syscall.EMFILE) {
			t.Fatal(err)
		} else if s.Stats().Accepted == uint64(len(clients)) && len(spare) > 0 {
			spare[0].Close()
			spare = spare[1:]
		}
	}
	return clients
}

// echoed sends a byte and wants it back, in whatever time that takes.
func echoed(c net.Conn) error {
	if _, err := fmt.Fprint(c, "x"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}
