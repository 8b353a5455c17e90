package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// answering is a server that reads as much as it is told and answers whatever it is told.
func answering(t testing.TB, want, answer string) (addr string) {
	return target(t, func(c net.Conn) {
		b := make([]byte, len(want))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
			t.Errorf("the server got %q, %v; want %q", b, err, want)
		}
		io.WriteString(c, answer)
		io.Copy(io.Discard, c)
	})
}

func TestConnect(t *testing.T) {
	user := &User{"alice", "secret"}
	at := Target{Addr: netip.MustParseAddr("2001:db8::1"), Port: 443}
	const toAt = "\x05\x01\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\xbb"
	for _, c := range []struct {
		name, want, answer string
		to                 Target
		user               *User
	}{
		{"name", hello + toExample, helloBack + "\x05\x00" + noAddress, Target{Name: "example.org", Port: 80}, nil},
		{"IPv6", hello + toAt, helloBack + "\x05\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50", at, nil},
		{"bound to a name", hello + toExample, helloBack + "\x05\x00\x00\x03\x02me\x00\x50", Target{Name: "example.org", Port: 80}, nil},
		{"bound to an empty name", hello + toExample, helloBack + "\x05\x00\x00\x03\x00\x00\x50", Target{Name: "example.org", Port: 80}, nil},
		{"bound to a strange name", hello + toExample, helloBack + "\x05\x00\x00\x03\x03a b\x00\x50", Target{Name: "example.org", Port: 80}, nil},
		{"password", passHello + aliceRight + toExample, passBack + "\x01\x00\x05\x00" + noAddress, Target{Name: "example.org", Port: 80}, user},
		{"password, with the other version", passHello + aliceRight + toExample, passBack + "\x05\x00\x05\x00" + noAddress, Target{Name: "example.org", Port: 80}, user},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dialTest(t, answering(t, c.want, c.answer+"behind the reply"))
			client.SetDeadline(time.Time{})
			if err := Connect(t.Context(), client, c.to, c.user); err != nil {
				t.Fatal(err)
			}
			mustRead(t, client, "behind the reply")
		})
	}
}

func TestConnectFailures(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		user         *User
		want         Kind
		text         string
	}{
		{"general", helloBack + "\x05\x01" + noAddress, nil, General, "general failure"},
		{"not allowed", helloBack + "\x05\x02" + noAddress, nil, NotAllowed, "not allow"},
		{"network", helloBack + "\x05\x03" + noAddress, nil, NetworkUnreachable, "network unreachable"},
		{"host", helloBack + "\x05\x04" + noAddress, nil, HostUnreachable, "host unreachable"},
		{"refused", helloBack + "\x05\x05" + noAddress, nil, Refused, "refused"},
		{"TTL", helloBack + "\x05\x06" + noAddress, nil, Timeout, "TTL"},
		{"command", helloBack + "\x05\x07" + noAddress, nil, Unsupported, "reply 7"},
		{"address type", helloBack + "\x05\x08" + noAddress, nil, Unsupported, "reply 8"},
		{"unknown reply", helloBack + "\x05\x99" + noAddress, nil, General, "reply 153"},
		{"refusal with an address of no known type", helloBack + "\x05\x05\x00\x00\x00", nil, Refused, "refused"},
		{"wants a password", "\x05\xff", nil, NotAllowed, "password"},
		{"wants none", "\x05\xff", &alice[1], NotAllowed, "password"},
		{"wrong password", passBack + "\x01\x01", &alice[1], NotAllowed, "refuses the user"},
		{"method not offered", "\x05\x01", nil, General, "not offered"},
		{"not SOCKS", "HTTP/1.1 400", nil, General, "version"},
		{"version of the reply", helloBack + "\x04\x00" + noAddress, nil, General, "version"},
		{"unknown address type", helloBack + "\x05\x00\x00\x09\x00\x00", nil, General, "address type 9"},
		{"cut in the greeting", "\x05", nil, General, "closed"},
		{"cut in the reply", helloBack + "\x05\x00\x00\x01\x00", nil, General, "closed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := target(t, func(conn net.Conn) {
				io.WriteString(conn, c.answer)
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			})
			err := Connect(t.Context(), dialTest(t, addr), Target{Name: "example.org", Port: 80}, c.user)
			if err == nil || KindOf(err) != c.want || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "example.org:80") {
				t.Errorf("got %v (%v), want %v with %q", err, KindOf(err), c.want, c.text)
			}
		})
	}
	for _, u := range []User{{"", "x"}, {strings.Repeat("u", 256), "x"}, {"u", strings.Repeat("p", 256)}} {
		a, _ := net.Pipe()
		if err := Connect(t.Context(), a, Target{Name: "x", Port: 1}, &u); err == nil {
			t.Errorf("%d and %d bytes of credentials are accepted", len(u.Name), len(u.Password))
		}
	}
	a, _ := net.Pipe()
	if err := Connect(t.Context(), a, Target{}, nil); err == nil {
		t.Error("no target is accepted")
	}
}

// TestReasonsPassThroughAChain of two proxies.
func TestReasonsPassThroughAChain(t *testing.T) {
	for k := range Kind(Kinds) {
		want := k
		switch k {
		case Timeout, NameNotFound: // the protocol has no words for them
			want = HostUnreachable
		case Exhausted:
			want = General
		}
		_, far := run(t, Config{SOCKS: true, Dialer: failing(Fail(k, "far away"))})
		near := &fakeDialer{dial: func(ctx context.Context, r *Request) (net.Conn, error) {
			c, err := net.Dial("tcp", far)
			if err != nil {
				return nil, err
			}
			if err := Connect(ctx, c, r.Target, nil); err != nil {
				c.Close()
				return nil, err
			}
			return c, nil
		}}
		_, addr := run(t, Config{SOCKS: true, Dialer: near})
		if err := Connect(t.Context(), dialTest(t, addr), Target{Name: "x", Port: 1}, nil); KindOf(err) != want {
			t.Errorf("%v: got %v (%v)", k, KindOf(err), err)
		}
	}
}

func TestConnectObeysContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		go io.Copy(io.Discard, server) // takes everything and says nothing
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		begin := time.Now()
		err := Connect(ctx, client, Target{Name: "x", Port: 1}, nil)
		if !errors.Is(err, context.DeadlineExceeded) || KindOf(err) != Timeout || time.Since(begin) != time.Minute {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
	})
}

// A server that tells reasons has more kinds of failure than there are codes, and says the same to clients that do not know of it.
func TestConnectLearnsTheReason(t *testing.T) {
	for kind, want := range map[Kind][2]Kind{ // without reasons, and with
		NameNotFound: {HostUnreachable, NameNotFound}, Timeout: {HostUnreachable, Timeout}, HostUnreachable: {HostUnreachable, HostUnreachable},
		Refused: {Refused, Refused}, NotAllowed: {NotAllowed, NotAllowed}, Exhausted: {General, General},
	} {
		for i, reasons := range []bool{false, true} {
			_, addr := run(t, Config{SOCKS: true, Reasons: reasons, Dialer: failing(Fail(kind, "no"))})
			err := Connect(t.Context(), dialTest(t, addr), Target{Name: "example.org", Port: 80}, nil)
			if KindOf(err) != want[i] {
				t.Errorf("%v, reasons %v: got %v (%v)", kind, reasons, KindOf(err), err)
			}
			raw := dialTest(t, addr)
			mustWrite(t, raw, "\x05\x01\x00"+toExample)
			b, err := io.ReadAll(raw)
			if err != nil || len(b) != 2+10 || b[3] != replyOf(kind) || b[5] != addressIPv4 {
				t.Errorf("%v, reasons %v: got % x, %v", kind, reasons, b, err)
			}
		}
	}
}
