package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"culvert.dev/culvert/internal/wguapi"
)

func TestEchoAddrs(t *testing.T) {
	both := []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::1/128")}
	within := []netip.Prefix{netip.MustParsePrefix("10.9.0.7/24"), netip.MustParsePrefix("fd00:9::1/64")}
	for _, c := range []struct {
		name    string
		own     []netip.Prefix
		allowed string
		want    string
	}{
		{"its own address first", both, "10.1.0.0/16 10.0.0.2/32", "[10.0.0.2 10.1.0.1]"},
		{"both families", both, "10.0.0.2/32 fd00::2/128", "[10.0.0.2 fd00::2]"},
		{"a family that this end lacks", both[:1], "10.0.0.2/32 fd00::2/128", "[10.0.0.2]"},
		{"a default route, and a network of our own", within, "0.0.0.0/0 ::/0", "[10.9.0.1]"},
		{"a default route only", both, "0.0.0.0/0 ::/0", "[]"},
		{"no address", nil, "10.0.0.2/32", "[]"},
		{"a few are enough", both, "10.0.0.2/32 10.0.0.3/32 10.0.0.4/32 10.0.0.5/32 10.0.0.6/32", "[10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5]"},
	} {
		var p wguapi.Peer
		var word string
		for rest := c.allowed; rest != ""; {
			n, _ := fmt.Sscan(rest, &word)
			if n == 0 {
				break
			}
			p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(word))
			rest = rest[min(len(word)+1, len(rest)):]
		}
		if got := fmt.Sprint(echoAddrs(p, c.own)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestIsReply(t *testing.T) {
	token := []byte("0123456789abcdef")
	message := func(kind icmp.Type, data []byte) []byte {
		b, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: 1, Seq: 1, Data: data}}).Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name     string
		protocol int
		b        []byte
		want     bool
	}{
		{"a reply", 1, message(ipv4.ICMPTypeEchoReply, token), true},
		{"a reply of IPv6", 58, message(ipv6.ICMPTypeEchoReply, token), true},
		{"the request, as raw sockets see it", 1, message(ipv4.ICMPTypeEcho, token), false},
		{"a reply to somebody else", 1, message(ipv4.ICMPTypeEchoReply, []byte("fedcba9876543210")), false},
		{"cut short", 1, message(ipv4.ICMPTypeEchoReply, token)[:6], false},
		{"nothing", 1, nil, false},
	} {
		if got := isReply(c.protocol, c.b, token); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestEchoOverLoopback(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, to := range []netip.Addr{loopback, netip.IPv6Loopback()} {
		if _, err := echoTo(ctx, "lo", to); err != nil {
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errNoEcho) {
				t.Errorf("%v: %v", to, err)
			} else {
				t.Logf("%v cannot be tried here: %v", to, err)
			}
		}
	}
	// Where echo is not granted, the refusal of a datagram takes its place.
	if _, err := refusal(ctx, "lo", loopback); errors.Is(err, syscall.EPERM) {
		t.Logf("sockets cannot be bound to an interface here: %v", err)
	} else if err != nil {
		t.Errorf("refusal: %v", err)
	}
}

func TestEchoEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := echoTo(ctx, "lo", loopback); err == nil {
		t.Error("an echo after its context had ended")
	}
	if _, err := echoAny(t.Context(), "lo", nil); !errors.Is(err, errNoEcho) {
		t.Errorf("without any address: %v", err)
	}
}
