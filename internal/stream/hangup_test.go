package stream

import (
	"net"
	"testing"
	"time"
)

func TestWatchHangup(t *testing.T) {
	if !canAwaitHangup {
		t.Skip("this host cannot be asked")
	}
	watch := func(c net.Conn, grace time.Duration) (gone chan struct{}, stop func()) {
		gone = make(chan struct{})
		return gone, WatchHangup(c, grace, func() { close(gone) })
	}
	t.Run("a reset", func(t *testing.T) {
		a, b := tcpPair(t)
		gone, stop := watch(b, time.Hour)
		mustWrite(t, a, "behind which nobody looks")
		a.SetLinger(0)
		a.Close()
		await(t, "gone", gone)
		stop()
	})
	t.Run("an end, after its grace", func(t *testing.T) {
		a, b := tcpPair(t)
		mustWrite(t, a, "x")
		a.Close()
		gone, stop := watch(b, time.Millisecond)
		await(t, "gone", gone)
		stop()
	})
	t.Run("a unix socket that is closed", func(t *testing.T) {
		a, b := unixPair(t)
		gone, stop := watch(b, time.Hour)
		a.Close()
		await(t, "gone", gone)
		stop()
	})
	t.Run("a half-close is given its time", func(t *testing.T) {
		a, b := tcpPair(t)
		mustWrite(t, a, "x")
		a.CloseWrite()
		gone, stop := watch(b, time.Hour)
		stop()
		select {
		case <-gone:
			t.Error("it is taken for gone")
		default:
		}
		mustRead(t, b, "x")
		mustEnd(t, b)
	})
	t.Run("nothing is taken", func(t *testing.T) {
		a, b := tcpPair(t)
		gone, stop := watch(b, time.Hour)
		mustWrite(t, a, "before")
		stop()
		mustWrite(t, a, " and after")
		mustRead(t, b, "before and after")
		select {
		case <-gone:
			t.Error("it is taken for gone")
		default:
		}
	})
	t.Run("what cannot be asked", func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		_, stop := watch(b, time.Hour)
		stop()
	})
}
