package probe

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchCountsTheSlowest has every tenth answer take longer than the watch goes on, and every fourth not come.
func TestWatchCountsTheSlowest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		a := &asker{every: 20 * time.Millisecond, ask: func(ctx context.Context) (time.Duration, error) {
			n := asked.Add(1)
			took := 5 * time.Millisecond
			switch {
			case n%10 == 0:
				took = 1500 * time.Millisecond
			case n%4 == 0:
				<-ctx.Done()
				return 0, ctx.Err()
			case n == 1:
				return 0, syscall.EMFILE // of this host: says nothing
			}
			time.Sleep(took)
			return took, nil
		}}
		stop := make(chan struct{})
		time.AfterFunc(1990*time.Millisecond, func() { close(stop) })
		l := a.watch(t.Context(), stop)
		// Of 1 to 100 the first is not counted; 20 are lost: multiples of 4 but not of 20; 10 are slow.
		if l.Sent != 99 || l.Answered != 79 || time.Duration(l.Max) != 1500*time.Millisecond ||
			time.Duration(l.P50).Round(time.Millisecond) != 5*time.Millisecond {
			t.Errorf("%+v", l)
		}
		if r := a.recent(); r.Sent != 99 || a.recent().Sent != 0 {
			t.Errorf("recent: %+v", r)
		}
	})
}

func TestWatchEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asker{every: time.Second, ask: func(ctx context.Context) (time.Duration, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(500*time.Millisecond, cancel)
		began := time.Now()
		if l := a.watch(ctx, nil); l.Sent != 0 || time.Since(began) != 500*time.Millisecond {
			t.Errorf("%+v after %v", l, time.Since(began))
		}
	})
}

func TestFindPrefersOurEcho(t *testing.T) {
	after := func(d time.Duration, err error) func(context.Context) (time.Duration, error) {
		return func(ctx context.Context) (time.Duration, error) {
			select {
			case <-time.After(d):
				return d, err
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
	}
	never, refused := after(time.Hour, nil), after(0, errors.New("refused"))
	const ms = time.Millisecond
	for _, c := range []struct {
		name          string
		better, other func(context.Context) (time.Duration, error)
		want          string
		took          time.Duration
	}{
		{"both, ours a little later", after(80*ms, nil), after(10*ms, nil), "better", 80 * ms},
		{"ours alone", after(700*ms, nil), never, "better", 700 * ms},
		{"the other alone", never, after(40*ms, nil), "other", 140 * ms},
		{"ours refused", refused, after(40*ms, nil), "other", 40 * ms},
		{"neither", never, never, "", 3 * time.Second},
		{"both refused", refused, refused, "", 0},
		{"no other", after(300*ms, nil), nil, "better", 300 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				found := find(t.Context(), &asker{name: "better", ask: c.better}, &asker{name: "other", ask: c.other})
				got := ""
				if found != nil {
					got = found.name
				}
				if got != c.want || time.Since(began) != c.took {
					t.Errorf("got %q after %v, want %q after %v", got, time.Since(began), c.want, c.took)
				}
			})
		})
	}
}
