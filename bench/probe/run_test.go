package probe

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"culvert.dev/culvert/bench/iperf3"
)

func TestTargets(t *testing.T) {
	for given, want := range map[string]string{
		"host": "host:5201", "host:1": "host:1", "192.0.2.1": "192.0.2.1:5201", "192.0.2.1:7": "192.0.2.1:7", "2001:db8::1": "[2001:db8::1]:5201",
		"[2001:db8::1]": "[2001:db8::1]:5201", "[2001:db8::1]:7": "[2001:db8::1]:7", "fe80::1%eth0": "[fe80::1%eth0]:5201",
	} {
		if got := Complete(given, 5201); got != want {
			t.Errorf("%s: got %s, want %s", given, got, want)
		}
	}
	if _, _, err := splitTarget("host:iperf"); err == nil {
		t.Error("a port by name")
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{syscall.ECONNREFUSED, "culvert bench server"},
		{syscall.ECONNRESET, "see what its server says"},
		{errNoStart, "see whether the host is up"},
		{iperf3.ErrBusy, "wait for the other test's end"},
		{iperf3.ErrServerTerminated, "the server has terminated"},
	} {
		err := explain("host:5201", fmt.Errorf("connect: %w", c.err))
		if !errors.Is(err, c.err) || !strings.HasPrefix(err.Error(), "bench host:5201: connect: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v", c.err, err)
		}
	}
	if err := explain("x", iperf3.ErrInterrupted); err != iperf3.ErrInterrupted {
		t.Errorf("interrupted: %v", err)
	}
	if explain("x", nil) != nil {
		t.Error("no error is one")
	}
}
