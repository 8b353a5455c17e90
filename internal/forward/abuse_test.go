package forward

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestOneSweepWhateverComesAndGoes: sessions that end at once must not each leave a timer that goes on with the next.
func TestOneSweepWhateverComesAndGoes(t *testing.T) {
	refuse := true
	inVirtualTime(t, UDPConfig{Dial: func(_ context.Context, from Origin) (net.Conn, error) {
		if refuse {
			return nil, net.ErrClosed
		}
		return newFakeTarget(from), nil
	}}, func(t *testing.T, w *world) {
		w.send("192.0.2.1:1")
		first := w.u.timer
		for range 10 {
			w.send("192.0.2.1:1")
		}
		if w.u.timer != first {
			t.Error("there is a timer for each")
		}
		refuse = false
		w.send("192.0.2.1:1")
		if w.u.Stats().Active != 1 {
			t.Fatal("no session")
		}
		time.Sleep(DefaultIdle + w.u.sweepEvery())
		synctest.Wait()
		if w.u.Stats().Active != 0 {
			t.Error("the session does not end")
		}
		w.send("192.0.2.1:1") // the sweep has ended, and begins again
		time.Sleep(DefaultIdle + w.u.sweepEvery())
		synctest.Wait()
		if w.u.Stats().Active != 0 {
			t.Error("the next session does not end")
		}
	})
}

// TestClientThatLeavesEndsTheDial: a target that does not answer is not waited for any more.
func TestClientThatLeavesEndsTheDial(t *testing.T) {
	front := listenTCP(t, "127.0.0.1")
	dialling, ended := make(chan struct{}), make(chan struct{})
	f := serveTCP(t, TCPConfig{DialTime: time.Hour, Dial: func(ctx context.Context, _ Origin) (net.Conn, error) {
		close(dialling)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}}, front)
	c := dial(t, front.Addr())
	send(t, c, []byte("ahead"))
	<-dialling
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the dial goes on")
	}
	await(t, "the end", func() bool { return f.Stats().Active == 0 })
	if s := f.Stats(); s.DialFailures != 0 {
		t.Errorf("it is not the target that failed: %+v", s)
	}
}

// TestStaleSocketHasOneHeir: of many that find a dead socket one gets its name, and keeps it.
func TestStaleSocketHasOneHeir(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "s")
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		dead.Close()
		var mu sync.Mutex
		var heirs []net.Listener
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				l, err := ListenHost(context.Background(), "unix", path, 0)
				if err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				heirs = append(heirs, l)
			})
		}
		wg.Wait()
		if len(heirs) != 1 {
			t.Errorf("%d believe that they listen", len(heirs))
		} else if c, err := net.Dial("unix", path); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		for _, l := range heirs {
			l.Close()
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		if t.Failed() {
			return
		}
	}
}
