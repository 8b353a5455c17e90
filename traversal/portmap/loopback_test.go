package portmap

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// onLoopback is a fake gateway on a loopback address of its own, with real sockets. Systems that have but one such address
// skip.
func onLoopback(t *testing.T, protocols ...Protocol) (*fakeGateway, *Mapper) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	addr := netip.AddrFrom4([4]byte{127, 77, byte(r.IntN(256)), byte(1 + r.IntN(254))})
	g := &fakeGateway{
		addr: addr, external: wan,
		listen: func(at netip.AddrPort) (net.PacketConn, error) { return listenPacket(at) },
		accept: func(at netip.AddrPort) (net.Listener, error) { return net.Listen("tcp", at.String()) },
	}
	probe, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Skipf("no second loopback address: %v", err)
	}
	probe.Close()
	g.serve(t, protocols...)
	t.Cleanup(g.stop)
	m := New(Config{Gateways: func() ([]Gateway, error) {
		return []Gateway{{Addr: addr, Local: netip.MustParseAddr("127.0.0.1")}}, nil
	}})
	m.Map(51820)
	return g, m
}

func gather(t *testing.T, m *Mapper) time.Duration {
	t.Helper()
	start := time.Now()
	go m.Run(t.Context())
	select {
	case <-m.Gathered():
	case <-time.After(20 * time.Second):
		t.Fatal("gathering does not end")
	}
	return time.Since(start)
}

func TestRealSockets(t *testing.T) {
	for _, p := range []Protocol{PCP, NATPMP, UPnP} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			g, m := onLoopback(t, p)
			took := gather(t, m)
			list := m.Mappings()
			if len(list) != 1 || list[0].Protocol != p || took > 3*time.Second {
				t.Errorf("after %v: %+v, %+v", took, list, m.Status())
			}
			if err := m.Close(t.Context()); err != nil || g.entries() != "" {
				t.Errorf("close: %v, %s", err, g.entries())
			}
		})
	}
}

// Where the port is closed the kernel says so at once, and nobody waits.
func TestRefusedIsNotWaitedFor(t *testing.T) {
	g, m := onLoopback(t)
	l := &link{gw: Gateway{Addr: g.addr, Local: netip.MustParseAddr("127.0.0.1")}, cfg: &m.cfg, counters: &m.counters}
	start := time.Now()
	r := l.probe(t.Context(), PCP)
	if took := time.Since(start); r.Found || !errors.Is(r.Err, ErrNoAnswer) || took > firstWait {
		t.Errorf("after %v: %+v", took, r)
	}
}

func TestBadWebServers(t *testing.T) {
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	for _, c := range []struct {
		name  string
		serve func(http.ResponseWriter, *http.Request)
		limit time.Duration
		want  func(error, Stats) bool
	}{
		{"64 KiB and more", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, device(1, "", [2]string{typeIP + "1", "/control"})+strings.Repeat(" ", maxBody))
		}, 4 * time.Second, func(err error, s Stats) bool { return errors.Is(err, errTooLarge) && s.TooLarge == 1 }},
		{"a document type", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><root>&b;</root>`)
		}, 4 * time.Second, func(err error, s Stats) bool { return errors.Is(err, errXML) && s.Malformed == 1 }},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, 4 * time.Second, func(err error, s Stats) bool { return s.Requests == 1 && strings.Contains(err.Error(), "302") }},
		{"one byte at a time", func(w http.ResponseWriter, r *http.Request) {
			for {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				select {
				case <-time.After(50 * time.Millisecond):
				case <-r.Context().Done():
					return
				case <-stop:
					return
				}
			}
		}, searchTimeout + time.Second, func(err error, s Stats) bool { return errors.Is(err, context.DeadlineExceeded) }},
		{"a header without end", func(w http.ResponseWriter, _ *http.Request) {
			for range 1000 {
				w.Header().Add("X", strings.Repeat("x", 100))
			}
		}, 4 * time.Second, func(err error, s Stats) bool { return strings.Contains(err.Error(), "headers exceeded") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g, m := onLoopback(t, UPnP)
			g.with(func() { g.descriptor = c.serve })
			took := gather(t, m)
			s := m.Status()[0].Services[2]
			if len(m.Mappings()) != 0 || took > c.limit || s.Err == nil || !c.want(s.Err, m.Stats()) {
				t.Errorf("after %v: %+v, %+v", took, s, m.Stats())
			}
			m.Close(t.Context())
		})
	}
}
