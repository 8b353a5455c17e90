package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// Pieces of conversations.
const (
	hello      = "\x05\x01\x00"
	helloBack  = "\x05\x00"
	toExample  = "\x05\x01\x00\x03\x0bexample.org\x00\x50"
	noAddress  = "\x00\x01\x00\x00\x00\x00\x00\x00"
	passHello  = "\x05\x01\x02"
	passBack   = "\x05\x02"
	aliceRight = "\x01\x05alice\x06secret"
)

var alice = []User{{"bob", "pass"}, {"alice", "secret"}}

func TestConnectTargets(t *testing.T) {
	name255 := strings.Repeat("a.", 127) + "b"
	for _, c := range []struct {
		name, request string
		want          Target
	}{
		{"IPv4", "\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb", Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 443}},
		{"IPv6", "\x05\x01\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50", Target{Addr: netip.MustParseAddr("2001:db8::1"), Port: 80}},
		{"IPv4 mapped into IPv6", "\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01\x00\x50", Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80}},
		{"name", toExample, Target{Name: "example.org", Port: 80}},
		{"name in capitals with a dot behind", "\x05\x01\x00\x03\x0cEXAMPLE.org.\x00\x50", Target{Name: "example.org", Port: 80}},
		{"IDNA as it is", "\x05\x01\x00\x03\x07b\xc3\xbcch\xc3\x9c\x00\x50", Target{Name: "büchÜ", Port: 80}},
		{"longest name", "\x05\x01\x00\x03\xff" + name255 + "\x00\x50", Target{Name: name255, Port: 80}},
		{"address as a name", "\x05\x01\x00\x03\x09192.0.2.1\x00\x50", Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80}},
		{"IPv6 address as a name", "\x05\x01\x00\x03\x0b2001:db8::1\x00\x50", Target{Addr: netip.MustParseAddr("2001:db8::1"), Port: 80}},
		{"IPv6 address in brackets as a name", "\x05\x01\x00\x03\x0d[2001:db8::1]\x00\x50", Target{Addr: netip.MustParseAddr("2001:db8::1"), Port: 80}},
		{"reserved byte set", "\x05\x01\x07\x03\x0bexample.org\x00\x50", Target{Name: "example.org", Port: 80}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := hostDialer(target(t, echo))
			_, addr := run(t, Config{SOCKS: true, Dialer: d})
			client := dialTest(t, addr)
			mustWrite(t, client, hello)
			mustRead(t, client, helloBack)
			mustWrite(t, client, c.request)
			mustRead(t, client, "\x05\x00\x00\x01\x7f\x00\x00\x01")
			io.ReadFull(client, make([]byte, 2)) // the port is any
			mustWrite(t, client, "ping")
			mustRead(t, client, "ping")
			got := d.last(t)
			if got.Target != c.want || got.Protocol != "socks5" || got.User != "" || got.Exit != "" {
				t.Errorf("got %+v, want target %+v", got, c.want)
			}
			if own := client.LocalAddr().(*net.TCPAddr).AddrPort(); got.Client != own {
				t.Errorf("client %v, want %v", got.Client, own)
			}
		})
	}
}

// TestConversations are what a client sends at once and what it gets back before the end.
func TestConversations(t *testing.T) {
	refusedName := func(name string) string {
		return hello + "\x05\x01\x00\x03" + string(rune(len(name))) + name + "\x00\x50"
	}
	for _, c := range []struct {
		name, send, want string
		users            []User
	}{
		{"no common method", "\x05\x02\x01\x80", "\x05\xff", nil},
		{"no methods", "\x05\x00", "\x05\xff", nil},
		{"none is not enough where there are users", hello, "\x05\xff", alice},
		{"wrong password", passHello + "\x01\x05alice\x05wrong", passBack + "\x01\x01", alice},
		{"password of another user", passHello + "\x01\x05alice\x04pass", passBack + "\x01\x01", alice},
		{"unknown user", passHello + "\x01\x05carol\x06secret", passBack + "\x01\x01", alice},
		{"empty user", passHello + "\x01\x00\x00", passBack + "\x01\x01", alice},
		{"exit without a name", passHello + "\x01\x05exit+\x01x", passBack + "\x01\x01", nil},
		{"wrong version of the password method", passHello + "\x05\x05alice\x06secret", passBack, alice},
		{"BIND", hello + "\x05\x02\x00\x01\xc0\x00\x02\x01\x00\x50", helloBack + "\x05\x07\x00" + noAddress[1:], nil},
		{"ASSOCIATE where there is none", hello + "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", helloBack + "\x05\x07\x00" + noAddress[1:], nil},
		{"unknown command", hello + "\x05\x09\x00\x01\xc0\x00\x02\x01\x00\x50", helloBack + "\x05\x07\x00" + noAddress[1:], nil},
		{"unknown address type, with more behind", hello + "\x05\x01\x00\x05\xc0\x00\x02\x01\x00\x50", helloBack + "\x05\x08\x00" + noAddress[1:], nil},
		{"wrong version of the request", hello + "\x04\x01\x00\x01\xc0\x00\x02\x01\x00\x50", helloBack, nil},
		{"port 0", hello + "\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x00", helloBack + "\x05\x01\x00" + noAddress[1:], nil},
		{"empty name", refusedName(""), helloBack + "\x05\x04\x00" + noAddress[1:], nil},
		{"name that is a dot", refusedName("."), helloBack + "\x05\x04\x00" + noAddress[1:], nil},
		{"NUL in the name", refusedName("a\x00b"), helloBack + "\x05\x04\x00" + noAddress[1:], nil},
		{"line feed in the name", refusedName("a\nb"), helloBack + "\x05\x04\x00" + noAddress[1:], nil},
		{"space in the name", refusedName("a b"), helloBack + "\x05\x04\x00" + noAddress[1:], nil},
		{"old way to write 127.0.0.1", refusedName("127.1"), helloBack + "\x05\x04\x00" + noAddress[1:], nil},
		{"zone", refusedName("fe80::1%1"), helloBack + "\x05\x01\x00" + noAddress[1:], nil},
		{"neither version", "\x06\x01\x00", "", nil},
		{"HTTP where there is none", "GET / HTTP/1.0\r\n\r\n", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, addr := run(t, Config{SOCKS: true, Users: c.users, Dialer: failing(errPlain)})
			client := dialTest(t, addr)
			mustWrite(t, client, c.send)
			client.(*net.TCPConn).CloseWrite()
			mustRead(t, client, c.want)
			if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%d bytes more, %v", n, err)
			}
			await(t, "counted", func() bool {
				st := s.Stats()
				return st.Malformed+st.Failed[General]+st.Failed[Unsupported]+st.Failed[NameNotFound] == 1
			})
		})
	}
}

func TestReplyFromTheRealError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want byte
		kind Kind
	}{
		{errPlain, 1, General},
		{Fail(NotAllowed, "rule"), 2, NotAllowed},
		{fmt.Errorf("dial: %w", syscall.ENETUNREACH), 3, NetworkUnreachable},
		{fmt.Errorf("dial: %w", syscall.EHOSTUNREACH), 4, HostUnreachable},
		{&net.DNSError{IsNotFound: true}, 4, NameNotFound},
		{fmt.Errorf("dial: %w", syscall.ECONNREFUSED), 5, Refused},
		{fmt.Errorf("dial: %w", syscall.ETIMEDOUT), 4, Timeout},
		{context.DeadlineExceeded, 4, Timeout},
		{Fail(Unsupported, "no"), 7, Unsupported},
		{syscall.EMFILE, 1, Exhausted},
	} {
		s, addr := run(t, Config{SOCKS: true, Dialer: failing(c.err)})
		client := dialTest(t, addr)
		mustWrite(t, client, hello+toExample+"bytes sent ahead, which must not destroy the reply")
		mustRead(t, client, helloBack+"\x05"+string(rune(c.want))+"\x00"+noAddress[1:])
		mustEnd(t, client)
		if got := s.Stats(); got.Failed[c.kind] != 1 || got.Dialed != 0 {
			t.Errorf("%v: got %+v", c.err, got)
		}
	}
}

// TestRefusedForReal: nothing listens, and a real socket says so.
func TestRefusedForReal(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, addr := run(t, Config{SOCKS: true, Dialer: hostDialer(l.Addr().String())})
	client := dialTest(t, addr)
	mustWrite(t, client, hello+toExample)
	mustRead(t, client, helloBack+"\x05\x05\x00"+noAddress[1:])
}

// TestSuccessComesAfterTheTarget: no reply before the target has answered.
func TestSuccessComesAfterTheTarget(t *testing.T) {
	to := target(t, echo)
	answered := make(chan struct{})
	d := hostDialer(to)
	inner := d.dial
	d.dial = func(ctx context.Context, r *Request) (net.Conn, error) {
		<-answered
		return inner(ctx, r)
	}
	_, addr := run(t, Config{SOCKS: true, Dialer: d})
	client := dialTest(t, addr)
	mustWrite(t, client, hello+toExample)
	mustRead(t, client, helloBack)
	client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := client.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes before the target answered", n)
	}
	close(answered)
	client.SetReadDeadline(time.Now().Add(patience))
	mustRead(t, client, "\x05\x00\x00")
}

func TestPipelinedBytesAreKept(t *testing.T) {
	const more = "bytes behind the request"
	_, addr := run(t, Config{SOCKS: true, Users: alice, Dialer: hostDialer(target(t, echo))})
	for _, pieces := range []int{1, 3, 1000} {
		client := dialTest(t, addr)
		all := passHello + aliceRight + toExample + more
		for i := 0; i < len(all); {
			n := min(max(len(all)/pieces, 1), len(all)-i)
			mustWrite(t, client, all[i:i+n])
			i += n
		}
		mustRead(t, client, passBack+"\x01\x00"+"\x05\x00\x00\x01\x7f\x00\x00\x01")
		io.ReadFull(client, make([]byte, 2))
		mustRead(t, client, more)
		client.(*net.TCPConn).CloseWrite()
		mustEnd(t, client)
	}
}

func TestBytesAreCounted(t *testing.T) {
	s, addr := run(t, Config{SOCKS: true, Dialer: hostDialer(target(t, func(c net.Conn) {
		io.Copy(io.Discard, c) // to the end of the client's bytes
		io.WriteString(c, "answer")
	}))})
	client := dialTest(t, addr)
	mustWrite(t, client, hello+toExample+"ahead")
	mustRead(t, client, helloBack+"\x05\x00\x00\x01\x7f\x00\x00\x01")
	io.ReadFull(client, make([]byte, 2))
	mustWrite(t, client, "later")
	client.(*net.TCPConn).CloseWrite()
	mustRead(t, client, "answer")
	mustEnd(t, client)
	await(t, "served", func() bool { return s.Stats().Active == 0 })
	got := s.Stats()
	if got.FromClients != 10 || got.ToClients != 6 || got.Dialed != 1 || got.Connections != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestLogins(t *testing.T) {
	for _, c := range []struct {
		users      []User
		login      string
		user, exit string
	}{
		{alice, aliceRight, "alice", ""},
		{alice, "\x01\x03bob\x04pass", "bob", ""},
		{alice, "\x01\x0ealice+exit+fra\x06secret", "alice", "fra"},
		{nil, "\x01\x08exit+fra\x01x", "", "fra"},
		{nil, "\x01\x07anybody\x01x", "", ""},
		{nil, "\x01\x00\x00", "", ""},
	} {
		d := hostDialer(target(t, echo))
		_, addr := run(t, Config{SOCKS: true, Users: c.users, Dialer: d})
		client := dialTest(t, addr)
		mustWrite(t, client, "\x05\x02\x00\x02"+c.login+toExample)
		mustRead(t, client, passBack+"\x01\x00\x05\x00")
		if got := d.last(t); got.User != c.user || got.Exit != c.exit {
			t.Errorf("%q: got %+v", c.login, got)
		}
	}
}

// TestSlowClients: whatever part of a handshake a client sends, it is over in time.
func TestSlowClients(t *testing.T) {
	full := passHello + aliceRight + toExample
	for i := range len(full) {
		synctest.Test(t, func(t *testing.T) {
			s, err := New(Config{SOCKS: true, HTTP: true, Users: alice, Dialer: failing(errPlain)})
			if err != nil {
				t.Fatal(err)
			}
			client, inner := net.Pipe()
			go io.Copy(io.Discard, client)
			done := make(chan struct{})
			go func() { s.ServeConn(t.Context(), inner); close(done) }()
			begin := time.Now()
			for j := range i { // a byte now and then does not make it longer
				time.Sleep(time.Second / 2)
				client.Write([]byte{full[j]})
			}
			<-done
			if took := time.Since(begin); took != DefaultHandshake {
				t.Errorf("after %d bytes: ended after %v, want %v", i, took, DefaultHandshake)
			}
			if st := s.Stats(); st.Malformed != 1 || st.Active != 0 {
				t.Errorf("after %d bytes: %+v", i, st)
			}
			client.Close()
		})
	}
}

func TestDialTakesNoLongerThanAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDialer{dial: func(ctx context.Context, _ *Request) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		s, err := New(Config{SOCKS: true, Dialer: d, Dial: 7 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		client, inner := net.Pipe()
		done := make(chan struct{})
		go func() { s.ServeConn(t.Context(), inner); close(done) }()
		begin := time.Now()
		go io.WriteString(client, hello+toExample)
		want := helloBack + "\x05\x04\x00" + noAddress[1:]
		got := make([]byte, len(want))
		if _, err := io.ReadFull(client, got); err != nil || string(got) != want {
			t.Errorf("got %q, %v", got, err)
		}
		if took := time.Since(begin); took != 7*time.Second {
			t.Errorf("it took %v", took)
		}
		client.Close()
		<-done
		if st := s.Stats(); st.Failed[Timeout] != 1 {
			t.Errorf("got %+v", st)
		}
	})
}

func TestAllowFrom(t *testing.T) {
	for _, c := range []struct {
		from string
		ok   bool
	}{{"127.0.0.0/8", true}, {"192.0.2.0/24", false}} {
		s, addr := run(t, Config{SOCKS: true, Dialer: hostDialer(target(t, echo)), AllowFrom: []netip.Prefix{netip.MustParsePrefix(c.from)}})
		client := dialTest(t, addr)
		io.WriteString(client, hello)
		n, err := client.Read(make([]byte, 2))
		if (err == nil) != c.ok || (n > 0) != c.ok {
			t.Errorf("%s: got %d bytes, %v", c.from, n, err)
		}
		if got := s.Stats(); (got.Denied == 1) == c.ok {
			t.Errorf("%s: got %+v", c.from, got)
		}
	}
}

// TestHalfCloseBothWays through the whole proxy: the faults that others have.
func TestHalfCloseBothWays(t *testing.T) {
	t.Run("the server ends first", func(t *testing.T) {
		_, addr := run(t, Config{SOCKS: true, Dialer: hostDialer(target(t, func(c net.Conn) { io.WriteString(c, "bye") }))})
		client := dialTest(t, addr)
		if err := Connect(t.Context(), client, Target{Name: "x", Port: 1}, nil); err != nil {
			t.Fatal(err)
		}
		mustRead(t, client, "bye")
		mustEnd(t, client)
	})
	t.Run("the target resets", func(t *testing.T) {
		_, addr := run(t, Config{SOCKS: true, Dialer: hostDialer(target(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, 1))
			c.(*net.TCPConn).SetLinger(0)
		}))})
		client := dialTest(t, addr)
		if err := Connect(t.Context(), client, Target{Name: "x", Port: 1}, nil); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, client, "x")
		if _, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("got %v, want a reset", err)
		}
	})
}
