package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The last fault says who could not reach what, and why.
func TestLastFault(t *testing.T) {
	for _, c := range []struct {
		name, send string
		cfg        Config
		want       Fault
	}{
		{"socks5", "\x05\x01\x00\x05\x01\x00\x03\x07example\x00\x50", Config{SOCKS: true}, Fault{Client: "127.0.0.1", Target: "example:80", Reason: "dial: connection refused"}},
		{"socks4a", "\x04\x01\x00\x50\x00\x00\x00\x01me\x00example\x00", Config{SOCKS: true}, Fault{Client: "127.0.0.1", Target: "example:80", Reason: "dial: connection refused"}},
		{"http", "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Config{HTTP: true}, Fault{Client: "127.0.0.1", Target: "[2001:db8::1]:443", Reason: "dial: connection refused"}},
		{"a wrong password", passHello + "\x01\x05alice\x07invalid", Config{SOCKS: true, Users: alice}, Fault{Client: "127.0.0.1", Reason: "user name or password is wrong"}},
		{"no password", "\x05\x01\x00", Config{SOCKS: true, Users: alice}, Fault{Client: "127.0.0.1", Reason: "no method of authentication that both know"}},
		{"another protocol", "GET / HTTP/1.1\r\n\r\n", Config{SOCKS: true}, Fault{Client: "127.0.0.1", Reason: "the first byte is no version of SOCKS"}},
		{"not from here", "\x05\x01\x00", Config{SOCKS: true, AllowFrom: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, Fault{Client: "127.0.0.1", Reason: "AllowFrom does not have the client's address"}},
		{"a client that leaves", "", Config{SOCKS: true}, Fault{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Dialer = failing(fmt.Errorf("dial: %w", syscall.ECONNREFUSED))
			s, addr := run(t, c.cfg)
			conn := dialTest(t, addr)
			mustWrite(t, conn, c.send)
			if c.send == "" {
				conn.Close()
			} else {
				io.Copy(io.Discard, conn)
			}
			await(t, "an account of it", func() bool { st := s.Stats(); return st.Connections == 1 && (c.want == Fault{}) == st.Last.At.IsZero() })
			conn.Close()
			await(t, "served", func() bool { return s.Stats().Active == 0 })
			got := s.Stats().Last
			if got.At.IsZero() == (c.want != Fault{}) {
				t.Errorf("at %v", got.At)
			}
			got.At = time.Time{}
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestLastFaultLeavesOutWhatIsNone(t *testing.T) {
	var l lastFault
	target := Target{Name: "example", Port: 80}
	l.note(netip.Addr{}, target, fmt.Errorf("dial: %w", context.Canceled)) // the client has left
	l.note(netip.Addr{}, Target{}, io.ErrUnexpectedEOF)
	if l.get() != (Fault{}) {
		t.Errorf("got %+v", l.get())
	}
	for a, want := range map[netip.Addr]string{
		{}:                                   "unix socket",
		netip.MustParseAddr("192.0.2.1"):     "192.0.2.1",
		netip.MustParseAddr("2001:db8::1:2"): "2001:db8::/64",
		netip.MustParseAddr("fd00::1"):       "fd00::1",
		netip.MustParseAddr("::1"):           "::1",
	} {
		if l.note(a, target, io.EOF); l.get().Client != want { // of a dial it is a fault
			t.Errorf("got %+v, want %s", l.get(), want)
		}
	}
}

// Wrong passwords are told at Info: the first at once, then their number once a minute, by client, and never a name.
func TestWrongPasswordsAreToldOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		seen := 0
		s, err := New(Config{Name: "front", SOCKS: true, Users: alice, Dialer: failing(errors.New("no")), Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		}))})
		if err != nil {
			t.Fatal(err)
		}
		guess := func(from string, times int) {
			for range times {
				if _, _, ok := s.loginFrom(t.Context(), netip.MustParseAddr(from), "hunter2", "guess"); ok {
					t.Error("a wrong password is right")
				}
			}
		}
		told := func(want ...string) {
			t.Helper()
			synctest.Wait()
			text := log.String()
			if got := strings.TrimSpace(text[seen:]); got != strings.Join(want, "\n") {
				t.Errorf("got:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
			}
			seen = len(text)
		}
		one := func(client string) string {
			return `level=INFO msg="wrong user name or password" proxy=front client=` + client
		}
		several := func(client string, n int) string {
			return fmt.Sprintf(`level=INFO msg="wrong user names or passwords" proxy=front client=%s count=%d`, client, n)
		}
		guess("2001:db8::1", 1) // each takes a second
		guess("2001:db8::2", 9)
		guess("192.0.2.1", 1)
		told(one("2001:db8::/64"), one("192.0.2.1"))
		time.Sleep(badLoginEvery)
		told(several("2001:db8::/64", 9))
		guess("192.0.2.1", 1)
		guess("2001:db8::1", 2)
		told(one("192.0.2.1"))
		time.Sleep(3 * badLoginEvery)
		told(several("2001:db8::/64", 2))
		if len(s.badLogins.clients) != 0 {
			t.Errorf("%v is left", s.badLogins.clients)
		}
		if got := s.Stats(); got.BadLogins != 14 {
			t.Errorf("%d are counted", got.BadLogins)
		}

		// Clients beyond the bound have one line together.
		for i := range maxBadLoginLogs + 10 {
			s.badLogin(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		}
		text := log.String()[seen:]
		if n := strings.Count(text, "\n"); n != maxBadLoginLogs+1 || strings.Count(text, "client=others") != 1 {
			t.Errorf("%d lines", n)
		}
		seen += len(text)
		time.Sleep(badLoginEvery)
		told(several("others", 9))
		s.badLogin(netip.Addr{})
		told(one(`"unix socket"`))
		s.badLogin(netip.Addr{})
		s.Close()
		s.badLogin(netip.Addr{})
		time.Sleep(2 * badLoginEvery)
		told("")
	})
}
