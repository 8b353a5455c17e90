package egress

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

func state(e *Egress, name string) ExitStatus {
	for _, s := range e.Status() {
		if s.Name == name {
			return s
		}
	}
	return ExitStatus{}
}

func TestExitGetsTheName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		fra := w.exit("fra", "100.64.0.4")
		e := w.egress()
		d := e.Dialer(via("fra"))
		if s := e.Status("fra"); len(s) != 1 || s[0].State != Unknown {
			t.Errorf("status %+v before the first use", s)
		}
		c := dialOK(t, d, "WWW.Bücher.example.:443")
		if got := greetingOf(t, c); got != "fra" {
			t.Errorf("reached %q", got)
		}
		io.WriteString(c, "ping")
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
			t.Errorf("echo: %q, %v", b, err)
		}
		dialOK(t, d, "[2001:db8::7]:443")
		if got := strings.Join(fra.asked(), " "); got != "www.xn--bcher-kva.example:443 [2001:db8::7]:443" {
			t.Errorf("the exit was asked for %s", got)
		}
		if s := state(e, "fra"); s.State != Up || s.Conns != 2 || s.Good != 2 || s.Bad != 0 {
			t.Errorf("status %+v", s)
		}
		c.Close()
		c.Close()
		if s := state(e, "fra"); s.Conns != 1 {
			t.Errorf("status %+v after a close", s)
		}
	})
}

// A new connection takes two round trips to an exit, and one while it is in use. Idle connections are bounded, and end with the use.
func TestSetupTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.rtt = 80 * time.Millisecond
		w.exit("fra", "100.64.0.4")
		e := w.egress()
		d := e.Dialer(via("fra"))
		took := func() time.Duration {
			start := time.Now()
			dialOK(t, d, "www.example:443")
			return time.Since(start)
		}
		if got := took(); got != 2*w.rtt {
			t.Errorf("the first connection took %v, want two round trips, %v", got, 2*w.rtt)
		}
		time.Sleep(time.Second)
		for i := range 5 {
			if got := took(); got != w.rtt {
				t.Errorf("connection %d took %v, want one round trip, %v", i+2, got, w.rtt)
			}
			if s := state(e, "fra"); s.Idle > maxIdle {
				t.Errorf("%d idle connections", s.Idle)
			}
			time.Sleep(time.Second)
		}
		if s := state(e, "fra"); s.RTT != w.rtt || s.Idle == 0 {
			t.Errorf("status %+v, want the round trip and idle connections", s)
		}
		before := w.dials("")
		time.Sleep(idleTime)
		if s := state(e, "fra"); s.Idle != 0 {
			t.Errorf("%d idle connections after the use", s.Idle)
		}
		time.Sleep(10 * time.Minute)
		if n := w.dials("") - before; n != 0 {
			t.Errorf("%d connections opened while nobody used the exit", n)
		}
		if got := took(); got != 2*w.rtt {
			t.Errorf("after a pause a connection took %v", got)
		}
	})
}

func TestFailureOfTheTargetIsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.exit("fra", "100.64.0.4")
		ams := w.exit("ams", "100.64.0.5")
		e := w.egress()
		d := e.Dialer(via("fra", "ams"))
		for range 2 { // by a new connection, and by an idle one
			dialKind(t, d, "refused.example:80", proxy.Refused)
			dialKind(t, d, "denied.example:80", proxy.NotAllowed)
			dialKind(t, d, "nowhere.example:80", proxy.HostUnreachable) // SOCKS5 has no more precise reply
			dialOK(t, d, "www.example:80")
			synctest.Wait()
		}
		if len(ams.asked()) > 0 || state(e, "fra").State != Up {
			t.Errorf("the second exit was asked for %v, the first is %v", ams.asked(), state(e, "fra").State)
		}
		for _, pause := range []time.Duration{0, time.Minute} { // by an idle connection, and by a new one
			time.Sleep(pause)
			start := time.Now()
			if c := dialOK(t, d, "slow.example:80"); greetingOf(t, c) != "fra" || time.Since(start) != 10*time.Second {
				t.Errorf("a slow target took %v", time.Since(start))
			}
		}
	})
}

func TestGeneralFailureMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.rtt = 20 * time.Millisecond
		w.exit("fra", "100.64.0.4")
		ams := w.exit("ams", "100.64.0.5")
		e := w.egress()
		d := e.Dialer(via("fra", "ams"))
		dialKind(t, d, "broken.example:80", proxy.HostUnreachable, "fra: ", "ams: ", "general failure")
		if len(ams.asked()) != 1 || state(e, "fra").State != Down {
			t.Errorf("the second exit was asked for %v, the first is %v", ams.asked(), state(e, "fra").State)
		}
		// Both have answered, so that neither is hopeless.
		dialOK(t, d, "www.example:80")
	})
}

func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.rtt = 20 * time.Millisecond
		w.exit("fra", "100.64.0.4")
		w.exit("ams", "100.64.0.5")
		e := w.egress()
		d, other := e.Dialer(via("fra", "ams")), e.Dialer(via("fra", "ams"))
		live := dialOK(t, d, "www.example:80")
		if greetingOf(t, live) != "fra" {
			t.Error("the first exit was not preferred")
		}
		time.Sleep(time.Minute) // idle connections end

		w.setSilent("100.64.0.4", true)
		start := time.Now()
		if c := dialOK(t, d, "www.example:80"); greetingOf(t, c) != "ams" || time.Since(start) > freshTime+3*w.rtt {
			t.Errorf("failover took %v", time.Since(start))
		}
		start = time.Now()
		moved := dialOK(t, other, "www.example:80") // another listener knows
		if greetingOf(t, moved) != "ams" || time.Since(start) > 3*w.rtt {
			t.Errorf("a connection after the failover took %v", time.Since(start))
		}
		if s := state(e, "fra"); s.State != Down || !strings.Contains(s.Err, "no answer within 3s") || s.Since.IsZero() {
			t.Errorf("status %+v", s)
		}
		// While it is wanted and down nobody waits for it, however long that lasts.
		for range 100 {
			time.Sleep(7 * time.Second)
			start = time.Now()
			if c := dialOK(t, d, "www.example:80"); greetingOf(t, c) != "ams" || time.Since(start) > 3*w.rtt {
				t.Fatalf("a connection took %v while the first exit was down", time.Since(start))
			}
		}
		w.setSilent("100.64.0.4", false)
		time.Sleep(maxProbe + time.Second)
		if c := dialOK(t, d, "www.example:80"); greetingOf(t, c) != "fra" {
			t.Error("the preferred exit does not come back")
		}
		if s := e.Status("fra", "ams", "lon"); len(s) != 2 || s[0].Name != "ams" || s[0].State != Up || s[1].State != Up {
			t.Errorf("status %+v", s)
		}
		for _, c := range []net.Conn{live, moved} { // live connections stay where they are
			io.WriteString(c, "still here")
			b := make([]byte, 10)
			if _, err := io.ReadFull(c, b); err != nil {
				t.Errorf("a live connection: %v", err)
			}
		}
	})
}

// An exit that nobody wants any more is not probed for ever.
func TestProbesEndWithTheUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.exit("fra", "100.64.0.4")
		w.exit("ams", "100.64.0.5")
		d := w.egress().Dialer(via("fra", "ams"))
		w.setSilent("100.64.0.4", true)
		dialOK(t, d, "www.example:80")
		time.Sleep(10 * time.Minute)
		before := w.dials("100.64.0.4:1080")
		if before < 3 {
			t.Errorf("%d attempts, so that nothing was probed", before)
		}
		time.Sleep(time.Hour)
		if n := w.dials("100.64.0.4:1080") - before; n > 0 {
			t.Errorf("%d probes in an hour without any use", n)
		}
	})
}

func TestAllExitsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.exit("fra", "100.64.0.4")
		w.peers["phone"] = []netip.Addr{netip.MustParseAddr("100.64.0.9")} // refuses port 1080
		e := w.egress()
		d := e.Dialer(via("fra", "phone", "ams"))
		w.setSilent("100.64.0.4", true)
		words := []string{"fra: ", "no answer within 3s", "phone: ", "offers no SOCKS5", "AllowRouting", "ams: there is no peer ams"}
		start := time.Now()
		dialKind(t, d, "www.example:80", proxy.HostUnreachable, words...)
		if took := time.Since(start); took != freshTime {
			t.Errorf("took %v", took)
		}
		start = time.Now()
		dialKind(t, d, "www.example:80", proxy.HostUnreachable, words...)
		if took := time.Since(start); took > 0 {
			t.Errorf("took %v although every exit had just failed", took)
		}
		time.Sleep(2 * time.Second)
		w.setSilent("100.64.0.4", false) // in the middle of its window: the last resort is tried all the same
		dialOK(t, d, "www.example:80")
		if e.Outcomes()[0] != (Outcome{"exit", "ok", 1}) || e.Outcomes()[1] != (Outcome{"exit", "host unreachable", 2}) {
			t.Errorf("outcomes %v", e.Outcomes())
		}
	})
}

func TestStaleIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.rtt = 20 * time.Millisecond
		fra := w.exit("fra", "100.64.0.4")
		w.exit("ams", "100.64.0.5")
		e := w.egress()
		d := e.Dialer(via("fra", "ams"))
		dialOK(t, d, "www.example:80")
		dialOK(t, d, "www.example:80")
		time.Sleep(time.Second)
		fra.cut() // it has been started anew
		if c := dialOK(t, d, "www.example:80"); greetingOf(t, c) != "fra" || state(e, "fra").State != Up {
			t.Errorf("an idle connection that was closed is taken for a failure: %+v", state(e, "fra"))
		}
		time.Sleep(time.Second)
		if state(e, "fra").Idle == 0 {
			t.Fatal("no idle connection")
		}
		w.setSilent("100.64.0.4", true)
		start := time.Now()
		c := dialOK(t, d, "www.example:80")
		if took := time.Since(start); greetingOf(t, c) != "ams" || took < slowAnswer+freshTime || took > slowAnswer+freshTime+5*w.rtt {
			t.Errorf("an exit that fell silent was left after %v", took)
		}
	})
}

func TestChosenExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.exit("fra", "100.64.0.4")
		w.exit("ams", "100.64.0.5")
		d := w.egress().Dialer(via("fra"))
		r := request("www.example:80")
		r.Exit = "ams"
		c, err := d.Dial(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := greetingOf(t, c); got != "ams" {
			t.Errorf("left by %s", got)
		}
		r.Exit = "lon"
		if _, err := d.Dial(context.Background(), r); proxy.KindOf(err) != proxy.NotAllowed || !strings.Contains(err.Error(), "lon") {
			t.Errorf("an unknown exit: %v", err)
		}
		if _, err := d.ListenPacket(context.Background(), &proxy.Request{Exit: "lon"}); proxy.KindOf(err) != proxy.NotAllowed {
			t.Errorf("an unknown exit for datagrams: %v", err)
		}
		time.Sleep(time.Minute)
		r.Exit = "ams"
		w.setSilent("100.64.0.5", true)
		if _, err := d.Dial(context.Background(), r); proxy.KindOf(err) != proxy.HostUnreachable {
			t.Errorf("a chosen exit that is down: %v", err)
		}
	})
}

// A client that goes away says nothing about the exit.
func TestCancelledClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.exit("fra", "100.64.0.4")
		e := w.egress()
		d := e.Dialer(via("fra"))
		w.setSilent("100.64.0.4", true)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := d.Dial(ctx, request("www.example:80")); proxy.KindOf(err) != proxy.Timeout {
			t.Errorf("got %v", err)
		}
		if s := state(e, "fra"); s.State != Unknown || s.Bad != 0 {
			t.Errorf("status %+v", s)
		}
	})
}

// A server at port 1080 that wants a password, or is none, is a failure of the exit, not of the target.
func TestForeignServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for name, answer := range map[string]string{"100.64.0.6": "\x05\xff", "100.64.0.7": "HTTP/1.1 400 Bad Request\r\n\r\n", "100.64.0.8": ""} {
			w.peers[name] = []netip.Addr{netip.MustParseAddr(name)}
			w.listen(name+":1080", func(c net.Conn) {
				defer c.Close()
				c.Read(make([]byte, 256))
				io.WriteString(c, answer)
			})
		}
		w.exit("fra", "100.64.0.4")
		e := w.egress()
		c := dialOK(t, e.Dialer(via("100.64.0.6", "100.64.0.7", "100.64.0.8", "fra")), "www.example:80")
		if got := greetingOf(t, c); got != "fra" {
			t.Errorf("left by %s", got)
		}
		for _, name := range []string{"100.64.0.6", "100.64.0.7", "100.64.0.8"} {
			if s := state(e, name); s.State != Down || s.Err == "" {
				t.Errorf("%s: %+v", name, s)
			}
		}
	})
}
