//go:build linux

package load

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

func TestConnRateCountsConnections(t *testing.T) {
	to := startServer(t, "127.0.0.1:0")
	for _, noEcho := range []bool{false, true} {
		r, err := ConnRate{To: to, Workers: 4, NoEcho: noEcho, Warmup: 50 * time.Millisecond, Length: 200 * time.Millisecond}.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if r.Connections == 0 || r.Failed != 0 || r.FirstFailure != "" || r.PerSecond != float64(r.Connections)/0.2 {
			t.Errorf("got %+v", r)
		}
		if r.ConnectP50 <= 0 || r.ConnectP99 < r.ConnectP50 || (r.EchoP50 == 0) != noEcho || !noEcho && r.EchoP50 < r.ConnectP50 {
			t.Errorf("got %+v", r)
		}
	}
}

func TestConnRateCountsFailures(t *testing.T) {
	for name, c := range map[string]struct {
		handle func(*net.TCPConn)
		want   string
	}{
		"a server that ends at once":         {func(c *net.TCPConn) { c.SetLinger(0) }, "await the echo"},
		"a server that sends too much":       {func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.Write([]byte("ccc")) }, "more than one byte"},
		"a server that does not say so much": {func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.Read(make([]byte, 1)) }, "await the echo"},
	} {
		rate := ConnRate{To: served(t, c.handle), Workers: 1, Length: 100 * time.Millisecond, Timeout: 100 * time.Millisecond}
		r, err := rate.Run(context.Background())
		if err == nil || r.Connections != 0 || r.Failed == 0 {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
		if !strings.Contains(r.FirstFailure, c.want) && !strings.Contains(r.FirstFailure, "reset") {
			t.Errorf("%s: got %q, want %q", name, r.FirstFailure, c.want)
		}
	}
}

func TestConnRateEndsWhenItIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	to := served(t, func(c *net.TCPConn) { cancel(); c.Read(make([]byte, 2)) })
	if _, err := (ConnRate{To: to, Workers: 2, Length: time.Hour, Timeout: 200 * time.Millisecond}).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
}
