package probe

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/bench/iperf3"
)

// denyAll is the listener of a server that is busy: it gives every connection a byte and closes it.
func denyAll(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := io.ReadFull(c, make([]byte, len(iperf3.ProbeCookie))); err == nil {
				c.Write([]byte{0xff})
			}
			c.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

func dialTo(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
}

func TestConnectionRate(t *testing.T) {
	d := &dialer{dial: dialTo(denyAll(t)), answer: beDenied, workers: 3, interval: 100 * time.Millisecond}
	var intervals []Rate
	total, err := d.run(t.Context(), 450*time.Millisecond, func(r Rate) { intervals = append(intervals, r) })
	if err != nil {
		t.Fatal(err)
	}
	if total.Connections < 10 || total.Failed != 0 || total.Workers != 3 || total.PerSecond < 20 || total.Setup.Answered != total.Connections ||
		total.Setup.Min <= 0 || total.Setup.P50 > total.Setup.P99 || total.End < 0.4 {
		t.Errorf("total %+v", total)
	}
	sum, end := 0, 0.0
	for _, i := range intervals {
		if i.Start != end || i.End <= i.Start {
			t.Errorf("interval %+v after one that ends at %v", i, end)
		}
		sum, end = sum+i.Connections, i.End
	}
	if len(intervals) < 2 || sum > total.Connections || sum == 0 {
		t.Errorf("%d intervals with %d of %d connections", len(intervals), sum, total.Connections)
	}
}

func TestConnectionRateWithoutServer(t *testing.T) {
	d := &dialer{dial: dialTo(freeTarget(t)), answer: beDenied, workers: 1}
	total, err := d.run(t.Context(), 100*time.Millisecond, nil)
	if !errors.Is(err, syscall.ECONNREFUSED) || total.Connections != 0 || total.Failed == 0 || float64(total.Failed) > total.End/pauseTime.Seconds()+1 {
		t.Errorf("%v, %+v", err, total)
	}
}

// TestConnectionIsEndedByTheServer tells connections that a busy server denies from those of other programs.
func TestConnectionIsEndedByTheServer(t *testing.T) {
	for name, c := range map[string]struct {
		server func(net.Conn)
		want   error
	}{
		"denied":        {func(c net.Conn) { c.Write([]byte{0xff}) }, nil},
		"just closed":   {func(net.Conn) {}, io.EOF},
		"taken":         {func(c net.Conn) { c.Write([]byte{9}) }, errNotDenied},
		"reset":         {func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }, nil},
		"it says a lot": {func(c net.Conn) { c.Write(make([]byte, 1000)); io.Copy(io.Discard, c) }, errNotDenied},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var serving sync.WaitGroup
			serving.Go(func() {
				far, err := l.Accept()
				if err == nil {
					io.ReadFull(far, make([]byte, len(iperf3.ProbeCookie)))
					c.server(far)
					far.Close()
				}
			})
			near, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if err := beDenied(t.Context(), near); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			serving.Wait()
		})
	}
	near, far := net.Pipe() // it says and takes nothing
	defer far.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := beDenied(ctx, near); err == nil {
		t.Error("no error")
	}
}
