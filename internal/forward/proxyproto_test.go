package forward

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

func TestProxyHeaderBytes(t *testing.T) {
	const signature = "0d0a0d0a000d0a515549540a"
	for _, tt := range []struct {
		name          string
		transport     byte
		client, local string
		want          string
	}{
		{"IPv4 stream", proxyStream, "100.64.0.2:51000", "100.64.0.1:8443",
			"21 11 000c 64400002 64400001 c738 20fb"},
		{"IPv4 datagram", proxyDatagram, "100.64.0.2:51000", "100.64.0.1:53",
			"21 12 000c 64400002 64400001 c738 0035"},
		{"IPv6 stream", proxyStream, "[fd7a::2]:51000", "[fd7a::1]:8443",
			"21 21 0024 fd7a0000000000000000000000000002 fd7a0000000000000000000000000001 c738 20fb"},
		{"IPv6 datagram", proxyDatagram, "[fd7a::2]:51000", "[fd7a::1]:53",
			"21 22 0024 fd7a0000000000000000000000000002 fd7a0000000000000000000000000001 c738 0035"},
		{"two families become IPv6", proxyStream, "100.64.0.2:1", "[fd7a::1]:2",
			"21 21 0024 00000000000000000000ffff64400002 fd7a0000000000000000000000000001 0001 0002"},
		{"a zone is of this host only", proxyStream, "[fe80::2%7]:1", "[fe80::1%7]:2",
			"21 21 0024 fe800000000000000000000000000002 fe800000000000000000000000000001 0001 0002"},
		{"a unix socket has no addresses", proxyStream, "", "", "20 00 0000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var from Origin
			if tt.client != "" {
				from = Origin{netip.MustParseAddrPort(tt.client), netip.MustParseAddrPort(tt.local)}
			}
			got := hex.EncodeToString(appendProxyHeader(nil, tt.transport, from))
			if want := signature + strings.ReplaceAll(tt.want, " ", ""); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1}, []byte{10, 0, 0, 1}, uint16(1), uint16(65535), false)
	f.Add(make([]byte, 16), make([]byte, 16), uint16(1), uint16(2), true)
	f.Fuzz(func(t *testing.T, client, local []byte, clientPort, localPort uint16, datagram bool) {
		src, ok1 := netip.AddrFromSlice(client)
		dst, ok2 := netip.AddrFromSlice(local)
		if !ok1 || !ok2 {
			return
		}
		from := Origin{netip.AddrPortFrom(src.Unmap(), clientPort), netip.AddrPortFrom(dst.Unmap(), localPort)}
		transport := byte(proxyStream)
		if datagram {
			transport = proxyDatagram
		}
		b := appendProxyHeader([]byte("before"), transport, from)
		if len(b) > len("before")+proxyMaxLen {
			t.Fatalf("%d bytes", len(b))
		}
		p, err := parseProxy(append(b[len("before"):], "after"...))
		if err != nil {
			t.Fatal(err)
		}
		p.from = Origin{unmap(p.from.Client), unmap(p.from.Local)}
		if p.from != from || p.datagram != datagram || p.local || string(p.rest) != "after" {
			t.Errorf("got %+v, want %+v", p, from)
		}
	})
}
