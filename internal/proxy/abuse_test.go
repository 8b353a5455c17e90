package proxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// TestWrongPasswordsLockOutNobodyElse: many share an address, behind a translator or on one host.
func TestWrongPasswordsLockOutNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{accounts: newAccounts([]User{{"alice", "secret"}, {"bob", "hidden"}})}
		ctx := context.Background()
		nat := netip.MustParseAddr("192.0.2.1")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { s.loginFrom(ctx, nat, "alice", "guess") })
		}
		synctest.Wait()
		if _, _, ok := s.loginFrom(ctx, nat, "bob", "hidden"); !ok {
			t.Error("another user is locked out")
		}
		if _, _, ok := s.loginFrom(ctx, nat, "bob+exit+fra", "hidden"); !ok {
			t.Error("another user with an exit is locked out")
		}
		if _, _, ok := s.loginFrom(ctx, nat, "alice+exit+fra", "secret"); ok {
			t.Error("one user has guesses for each exit")
		}
		wg.Wait()
		if len(s.penalties.waiting) != 0 {
			t.Errorf("%v is left", s.penalties.waiting)
		}
	})
}

// TestPeersOfAMeshAreSeveralClients: their addresses are of one network.
func TestPeersOfAMeshAreSeveralClients(t *testing.T) {
	one, two := netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:1::2")
	if clientKey(one) == clientKey(two) {
		t.Error("what one peer uses up, all have")
	}
	one, two = netip.MustParseAddr("2a00:1::1"), netip.MustParseAddr("2a00:1::2")
	if clientKey(one) != clientKey(two) {
		t.Error("one network of the world is as many clients as it has addresses")
	}
}

// TestRefusedLoginIsHeardOf: to close with bytes unread would reset the connection, and destroy the answer on its way.
func TestRefusedLoginIsHeardOf(t *testing.T) {
	for _, tt := range []struct{ name, sent, want string }{
		{"a wrong password", "\x05\x01\x02\x01\x05alice\x05wrong", "\x05\x02\x01\x01"},
		{"no method", "\x05\x01\x00", "\x05\xff"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, addr := run(t, Config{SOCKS: true, Dialer: failing(errPlain), Users: alice})
			c := dialTest(t, addr)
			mustWrite(t, c, tt.sent+strings.Repeat("x", 100<<10)) // a request and its data, sent ahead
			got, err := io.ReadAll(c)
			if string(got) != tt.want || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// TestClientThatLeavesEndsTheDial: for a target that does not answer nobody waits any more.
func TestClientThatLeavesEndsTheDial(t *testing.T) {
	for _, tt := range []struct{ name, request string }{
		{"socks5", "\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50"},
		{"socks4", "\x04\x01\x00\x50\xc0\x00\x02\x01\x00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dialing, ended := make(chan struct{}), make(chan struct{})
			_, addr := run(t, Config{SOCKS: true, Dialer: &fakeDialer{dial: func(ctx context.Context, _ *Request) (net.Conn, error) {
				close(dialing)
				<-ctx.Done()
				close(ended)
				return nil, ctx.Err()
			}}})
			c := dialTest(t, addr)
			mustWrite(t, c, tt.request+"and data ahead")
			<-dialing
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Error("the dial goes on")
			}
		})
	}
}

// TestShutdownDoesNotWaitForIdleClients: one between two requests, and one that has not begun.
func TestShutdownDoesNotWaitForIdleClients(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
	}{
		{"HTTP", Config{HTTP: true}},
		{"both", Config{HTTP: true, SOCKS: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			origin := echoOrigin(t, "a")
			tt.cfg.Dialer = hostDialer(origin)
			p, err := New(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := stream.NewServer(stream.ServerConfig{Handle: p.ServeConn})
			served := make(chan error, 1)
			go func() { served <- srv.Serve(l) }()
			defer srv.Close()
			idle := dialRaw(t, l.Addr().String())
			idle.send("GET http://a.test/ HTTP/1.1\r\n\r\n")
			idle.answer("GET")
			silent := dialRaw(t, l.Addr().String())
			await(t, "both are there", func() bool { return srv.Stats().Active == 2 })
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := srv.Shutdown(ctx); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			idle.wantEnd()
			silent.wantEnd()
			<-served
		})
	}
}

// TestShutdownLetsRequestsFinish: the answer says that it is the last.
func TestShutdownLetsRequestsFinish(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	origin := target(t, func(c net.Conn) {
		c.Read(make([]byte, 1024))
		close(asked)
		<-answer
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	p, err := New(Config{HTTP: true, Dialer: hostDialer(origin)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := stream.NewServer(stream.ServerConfig{Handle: p.ServeConn})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer srv.Close()
	c := dialRaw(t, l.Addr().String())
	c.send("GET http://a.test/ HTTP/1.1\r\n\r\n")
	<-asked
	down := make(chan error, 1)
	go func() { down <- srv.Shutdown(context.Background()) }()
	<-served // accepting has ended
	close(answer)
	res, body := c.answer("GET")
	if body != "ok" || !res.Close {
		t.Errorf("got %q, last %v", body, res.Close)
	}
	c.wantEnd()
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// TestEmptyLabels: a resolver takes one more dot for none, so that a name with one would pass rules that name it.
func TestEmptyLabels(t *testing.T) {
	for _, host := range []string{"corp.example..", "..", ".corp.example", "corp..example", "127.0.0.1..", "localhost.."} {
		if got, err := targetOf(host, 80); err == nil {
			t.Errorf("%q is %+v", host, got)
		}
	}
	if got, err := targetOf("corp.example.", 80); err != nil || got.Name != "corp.example" {
		t.Errorf("got %+v, %v", got, err)
	}
}
