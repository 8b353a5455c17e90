package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestParseTarget(t *testing.T) {
	addr := func(s string) Target { return Target{Addr: netip.MustParseAddr(s), Port: 80} }
	for _, c := range []struct {
		in   string
		want Target
	}{
		{"db:80", Target{Name: "db", Port: 80}},
		{"DB.Mesh.:80", Target{Name: "db.mesh", Port: 80}},
		{"_sip._tcp.example:80", Target{Name: "_sip._tcp.example", Port: 80}},
		{"1.2.3.example:80", Target{Name: "1.2.3.example", Port: 80}},
		{"0xample:80", Target{Name: "0xample", Port: 80}},
		{"192.0.2.1:80", addr("192.0.2.1")},
		{"[2001:DB8::1]:80", addr("2001:db8::1")},
		{"[::ffff:192.0.2.1]:80", addr("192.0.2.1")},
	} {
		got, err := ParseTarget(c.in)
		if err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v", c.in, got, err, c.want)
		}
		again, err := ParseTarget(got.String())
		if err != nil || again != got {
			t.Errorf("%s: as a string %q, parsed again %+v, %v", c.in, got.String(), again, err)
		}
	}
	for _, in := range []string{
		"", ":80", "db", "db:", "db:0", "db:65536", "db:http", "db:-1", "2001:db8::1", ".:80", "a b:80", "a\x00b:80", "a\tb:80", "a/b:80", "user@db:80",
		"127.1:80", "2130706433:80", "0x7f000001:80", "0x7f.1:80", "a.0x:80", "1.2.3.4.5:80", "256.0.0.1:80", "[fe80::1%eth0]:80", "\xff:80", strings.Repeat("a", 256) + ":80",
	} {
		if got, err := ParseTarget(in); err == nil {
			t.Errorf("%q: got %+v, want an error", in, got)
		}
	}
}

func TestTargetString(t *testing.T) {
	for _, c := range []struct {
		t          Target
		host, text string
	}{
		{Target{}, "", ""},
		{Target{Name: "db", Port: 1}, "db", "db:1"},
		{Target{Addr: netip.MustParseAddr("::1"), Port: 1}, "::1", "[::1]:1"},
	} {
		if c.t.Host() != c.host || c.t.String() != c.text {
			t.Errorf("%#v: %q, %q", c.t, c.t.Host(), c.t.String())
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{errPlain, General},
		{fmt.Errorf("dial: %w", Fail(Refused, "x: %w", syscall.EPERM)), Refused},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, Refused},
		{syscall.ECONNRESET, Refused},
		{syscall.ENETUNREACH, NetworkUnreachable},
		{syscall.EADDRNOTAVAIL, NetworkUnreachable},
		{syscall.EHOSTUNREACH, HostUnreachable},
		{syscall.ETIMEDOUT, Timeout},
		{os.ErrDeadlineExceeded, Timeout},
		{context.DeadlineExceeded, Timeout},
		{context.Canceled, General},
		{syscall.EACCES, NotAllowed},
		{syscall.EPERM, NotAllowed},
		{syscall.EMFILE, Exhausted},
		{&net.DNSError{IsNotFound: true}, NameNotFound},
		{&net.DNSError{IsTimeout: true}, Timeout},
		{&net.DNSError{Err: "server misbehaving"}, HostUnreachable},
		{slowError{}, Timeout},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
	err := Fail(NameNotFound, "no %s: %w", "db", errPlain)
	if err.Error() != "no db: something" || !errors.Is(err, errPlain) {
		t.Errorf("got %v", err)
	}
	seen := make(map[string]bool)
	for k := range Kind(Kinds) {
		seen[k.String()] = true
	}
	if len(seen) != Kinds {
		t.Errorf("%d texts for %d kinds", len(seen), Kinds)
	}
}

type slowError struct{}

func (slowError) Error() string   { return "slow" }
func (slowError) Timeout() bool   { return true }
func (slowError) Temporary() bool { return true }

func TestNewWantsADialerAndAProtocol(t *testing.T) {
	for _, cfg := range []Config{{SOCKS: true}, {Dialer: failing(errPlain)}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

// TestPrefixConn keeps the semantics of what it wraps.
func TestPrefixConn(t *testing.T) {
	c := dialTest(t, target(t, func(c net.Conn) { c.Write([]byte("later")) }))
	p := &prefixConn{Conn: c, rest: []byte("first")}
	if p.unwrap() != net.Conn(p) {
		t.Error("unwrapped although bytes are left")
	}
	if _, err := p.SyscallConn(); err == nil {
		t.Error("raw access although bytes are left")
	}
	mustRead(t, p, "fi")
	mustRead(t, p, "rstlater")
	if p.unwrap() != c {
		t.Error("not unwrapped")
	}
	if _, err := p.SyscallConn(); err != nil {
		t.Error(err)
	}
	if err := p.CloseWrite(); err != nil {
		t.Error(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if (&prefixConn{Conn: a}).CloseWrite() == nil {
		t.Error("a pipe has no half-close")
	}
}
