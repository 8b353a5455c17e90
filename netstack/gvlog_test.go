package netstack

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/log"

	"culvert.dev/culvert/filter"
)

type textLog struct {
	mu sync.Mutex // guards the following
	b  bytes.Buffer
}

func (l *textLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *textLog) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// What gVisor logs goes to the newest Net that is open, and never to standard error.
func TestGvisorLogsToTheNet(t *testing.T) {
	policy, err := filter.New(filter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	begin := func(l *textLog) *Net {
		n, err := New(Config{MTU: 1420, Policy: policy, Logger: slog.New(slog.NewTextHandler(l, nil))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		return n
	}
	var first, second textLog
	one, two := begin(&first), begin(&second)
	g := log.Log().Emitter.(*gvisorLog)
	say := func(text string) {
		g.mu.Lock()
		g.last = time.Time{} // as if nothing had been said for long
		g.mu.Unlock()
		log.Warningf("about %s: %d", text, 7)
	}
	say("two")
	two.Close()
	two.Close()
	say("one")
	one.Close()
	if !second.has(`level=WARN msg=gvisor message="about two: 7" skipped=0`) || first.has("about two") {
		t.Error("the newest did not hear of it, or not alone")
	}
	if !first.has(`message="about one: 7"`) || second.has("about one") {
		t.Error("the one that is left did not hear of it, or not alone")
	}
	if len(g.loggers) != 0 {
		t.Errorf("%d loggers are left", len(g.loggers))
	}
}

// A peer that makes gVisor complain fills no disk, and what is below the level costs no warning its line.
func TestGvisorLogIsBounded(t *testing.T) {
	var text textLog
	g := &gvisorLog{loggers: []*slog.Logger{slog.New(slog.NewTextHandler(&text, nil))}}
	now := time.Unix(1, 0)
	g.Emit(0, log.Info, now, "quiet")
	for i := range 10 {
		g.Emit(0, log.Warning, now.Add(time.Duration(i)*time.Millisecond), "loud %d", i)
	}
	g.Emit(0, log.Warning, now.Add(gvisorLogEvery), "later")
	for want, there := range map[string]bool{"quiet": false, "loud 0": true, "loud 1": false, `message=later skipped=9`: true} {
		if text.has(want) != there {
			t.Errorf("%q: %v, want %v", want, !there, there)
		}
	}
}

func TestGvisorLogFromSeveralStacksAtOnce(t *testing.T) {
	var text textLog
	l := slog.New(slog.NewTextHandler(&text, nil))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			leave := joinGvisorLog(l)
			log.Warningf("hello")
			leave()
			leave()
		})
	}
	wg.Wait()
	if g := log.Log().Emitter.(*gvisorLog); len(g.loggers) != 0 {
		t.Errorf("%d loggers are left", len(g.loggers))
	}
}
