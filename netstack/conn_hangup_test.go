package netstack

import (
	"io"
	"testing"
	"time"

	"culvert.dev/culvert/internal/stream"
)

func TestWatchHangupInTheMesh(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	watch := func(c *Conn, grace time.Duration) (gone chan struct{}, stop func()) {
		gone = make(chan struct{})
		return gone, stream.WatchHangup(c, grace, func() { close(gone) })
	}
	await := func(t *testing.T, gone chan struct{}) {
		t.Helper()
		select {
		case <-gone:
		case <-time.After(testPatience):
			t.Error("nothing was noticed")
		}
	}
	t.Run("a reset, behind bytes that nobody reads", func(t *testing.T) {
		near, far := p.connect(t, l)
		gone, stop := watch(far, time.Hour)
		near.Write([]byte("unread"))
		near.Abort()
		await(t, gone)
		stop()
	})
	t.Run("an end, after its grace", func(t *testing.T) {
		near, far := p.connect(t, l)
		gone, stop := watch(far, time.Millisecond)
		near.CloseWrite()
		await(t, gone)
		stop()
	})
	t.Run("an end within its grace, and before that bytes", func(t *testing.T) {
		near, far := p.connect(t, l)
		gone, stop := watch(far, time.Hour)
		near.Write([]byte("question"))
		near.CloseWrite()
		stop()
		if got, err := io.ReadAll(far); string(got) != "question" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		select {
		case <-gone:
			t.Error("it was given up")
		default:
		}
	})
	t.Run("it was over before", func(t *testing.T) {
		near, far := p.connect(t, l)
		near.CloseWrite()
		io.ReadAll(far)
		gone, stop := watch(far, 0)
		await(t, gone)
		stop()
	})
}
