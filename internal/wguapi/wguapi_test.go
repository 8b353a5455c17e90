package wguapi_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
)

// listen opens a unix socket whose connections are given to serve, one goroutine each.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wguapi") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "wg0.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return path
}

// stock runs stock wireguard-go without any network, and returns its socket.
func stock(t *testing.T) string {
	t.Helper()
	d := device.NewDevice(tuntest.NewChannelTUN().TUN(), bindtest.NewChannelBinds()[0], device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(d.Close)
	return listen(t, func(c net.Conn) { d.IpcHandle(c) })
}

func newKey(t *testing.T) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func raw(t *testing.T, path, request string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || line != "errno=0\n" {
		t.Fatalf("set: %q %v", line, err)
	}
}

func get(t *testing.T, c *wguapi.Client) wguapi.Device {
	t.Helper()
	d, err := c.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestStockWireGuard(t *testing.T) {
	path := stock(t)
	c := wguapi.NewClient(path)
	if d := get(t, c); len(d.Peers) != 0 || !d.PrivateKey.IsZero() {
		t.Fatalf("a new device: %+v", d)
	}
	key, peer, other := newKey(t), newKey(t).Public(), newKey(t).Public()
	raw(t, path, "set=1\nprivate_key="+key.RevealHex()+"\nfwmark=51820\npublic_key="+peer.Hex()+
		"\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.2/32\nallowed_ip=fd00::/64\n\n")
	want := wguapi.Device{
		PrivateKey: key, ListenPort: get(t, c).ListenPort, FirewallMark: 51820,
		Peers: []wguapi.Peer{{
			PublicKey: peer, Keepalive: 25 * time.Second,
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::/64")},
		}},
	}
	if d := get(t, c); !reflect.DeepEqual(d, want) {
		t.Errorf("got %+v, want %+v", d, want)
	}

	// A peer that does not exist is added, unless only an update was meant.
	prefix := netip.MustParsePrefix("100.64.0.4/32")
	if err := c.Set(t.Context(), wguapi.PeerChange{PublicKey: other, UpdateOnly: true, AllowedIPs: []netip.Prefix{prefix}}); err != nil {
		t.Error(err)
	}
	if d := get(t, c); len(d.Peers) != 1 {
		t.Errorf("an update made a peer: %+v", d.Peers)
	}
	if err := c.Set(t.Context(), wguapi.PeerChange{PublicKey: other, AllowedIPs: []netip.Prefix{prefix}}); err != nil {
		t.Error(err)
	}
	if d := get(t, c); len(d.Peers) != 2 {
		t.Errorf("no peer was added: %+v", d.Peers)
	}
	if err := c.Set(t.Context(), wguapi.PeerChange{PublicKey: other, Remove: true}); err != nil {
		t.Error(err)
	}
	if d := get(t, c); !reflect.DeepEqual(d, want) {
		t.Errorf("after a peer came and went: got %+v, want %+v", d, want)
	}
}

func TestEndpointIsSetWithoutTouchingTheRest(t *testing.T) {
	path := stock(t)
	c, peer := wguapi.NewClient(path), newKey(t).Public()
	raw(t, path, "set=1\npublic_key="+peer.Hex()+"\npersistent_keepalive_interval=7\nallowed_ip=10.0.0.2/32\n\n")
	// The endpoints of the in-memory bind are its own; what is asked for is a port of 127.0.0.1.
	if err := c.Set(t.Context(), wguapi.PeerChange{PublicKey: peer, UpdateOnly: true, Endpoint: netip.MustParseAddrPort("127.0.0.1:2")}); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(t.Context(), wguapi.PeerChange{PublicKey: peer, UpdateOnly: true, SetKeepalive: true, Keepalive: 9 * time.Second}); err != nil {
		t.Fatal(err)
	}
	d := get(t, c)
	if p := d.Peers[0]; p.Endpoint != netip.MustParseAddrPort("127.0.0.1:2") || p.Keepalive != 9*time.Second || len(p.AllowedIPs) != 1 {
		t.Errorf("got %+v", p)
	}
}

// answering serves one fixed answer to every request.
func answering(t *testing.T, answer string) *wguapi.Client {
	t.Helper()
	return wguapi.NewClient(listen(t, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		for { // the request ends with an empty line
			line, err := r.ReadString('\n')
			if err != nil || line == "\n" {
				break
			}
		}
		io.WriteString(c, answer)
	}))
}

const someKey = "public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n"

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		want         string // part of the error; "" for none
	}{
		{"empty device", "errno=0\n\n", ""},
		{"a key of the future", "quantum=yes\n" + someKey + "spin=up\nerrno=0\n\n", ""},
		{"handshake", someKey + "last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\nendpoint=[fe80::1%eth0]:5\nerrno=0\n\n", ""},
		{"mark in hex", "fwmark=0xca6c\nerrno=0\n\n", ""},
		{"refused", "errno=13\n\n", "permission denied"},
		{"refused as other systems write it", "errno=-13\n\n", "permission denied"},
		{"cut short", someKey, "cut short"},
		{"nothing", "", "cut short"},
		{"no line of the protocol", "HTTP/1.1 400 Bad Request\r\n\r\n", "not KEY=VALUE"},
		{"same peer twice", someKey + someKey + "errno=0\n\n", "two peers"},
		{"short key", "public_key=b859\nerrno=0\n\n", "not a key"},
		{"bad port", "listen_port=65536\nerrno=0\n\n", `"listen_port": value out of range`},
		{"bad endpoint", someKey + "endpoint=example.com:5\nerrno=0\n\n", `"endpoint"`},
		{"bad prefix", someKey + "allowed_ip=10.0.0.0/33\nerrno=0\n\n", `"allowed_ip"`},
		{"bad time", someKey + "last_handshake_time_nsec=-1\nerrno=0\n\n", "last handshake"},
		{"endless line", strings.Repeat("x", 1<<20), "too long"},
		{"bad errno", "errno=none\n\n", "errno"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := answering(t, c.answer).Get(t.Context())
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestHandshakeTime(t *testing.T) {
	d := get(t, answering(t, someKey+"last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\nendpoint=[::ffff:192.0.2.1]:5\nrx_bytes=3\ntx_bytes=4\nerrno=0\n\n"))
	p := d.Peers[0]
	if !p.LastHandshake.Equal(time.Unix(1700000000, 5)) || p.Endpoint != netip.MustParseAddrPort("192.0.2.1:5") || p.RxBytes != 3 || p.TxBytes != 4 {
		t.Errorf("got %+v", p)
	}
}

func TestSecretsAreNotInErrors(t *testing.T) {
	secret := strings.Repeat("5e", 31) // one byte short
	_, err := answering(t, "private_key="+secret+"\nerrno=0\n\n").Get(t.Context())
	if err == nil || strings.Contains(err.Error(), "5e5e") {
		t.Errorf("got %v", err)
	}
}

func TestErrorsNameSocketAndFix(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "wg7.sock")
	_, err := wguapi.NewClient(missing).Get(t.Context())
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing socket: %v", err)
	}
	err = answering(t, "errno=22\n\n").Set(t.Context(), wguapi.PeerChange{})
	if !errors.Is(err, wguapi.ErrRefused) || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := wguapi.NewClient(stock(t)).Get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestSilentDevice has a call end with its context when nobody answers.
func TestSilentDevice(t *testing.T) {
	release := make(chan struct{})
	asked := make(chan struct{}, 1)
	path := listen(t, func(c net.Conn) {
		asked <- struct{}{}
		<-release
		c.Close()
	})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := wguapi.NewClient(path).Get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
