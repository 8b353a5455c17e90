package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"culvert.dev/culvert/bench/iperf3"
)

// explain says what can be done about an error.
func explain(target string, err error) error {
	if err == nil || errors.Is(err, iperf3.ErrInterrupted) {
		return err
	}
	advice := ""
	var timeout net.Error
	var refused *iperf3.ServerError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		advice = "nothing listens there that this host may reach; start a server there (culvert bench server, iperf3 -s), and see what its firewall or, in a mesh, AllowInbound permits"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		advice = "the other end has closed the connection; see what its server says"
	case errors.Is(err, errNoStart), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		advice = "no answer; see whether the host is up (culvert ping, ping) and lets this port in, TCP and for -u UDP too"
	case errors.Is(err, iperf3.ErrBusy):
		advice = "wait for the other test's end"
	case errors.Is(err, iperf3.ErrServerTerminated), errors.Is(err, iperf3.ErrIdle), errors.As(err, &refused):
		// they speak for themselves
	}
	if !strings.Contains(err.Error(), target) {
		err = fmt.Errorf("bench %s: %w", target, err)
	}
	if advice != "" {
		err = fmt.Errorf("%w; %s", err, advice)
	}
	return err
}
