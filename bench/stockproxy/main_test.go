package main

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

const file = `
[Interface]
PrivateKey = AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= # not secret
Address = 100.64.0.2/32, fd7a::2/128
MTU = 1300
[Peer]
PublicKey = ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=
AllowedIPs = 100.64.0.0/24, fd7a::/64
Endpoint = 192.0.2.1:51820
PersistentKeepalive = 25
`

func TestParse(t *testing.T) {
	c, err := parse(file)
	if err != nil {
		t.Fatal(err)
	}
	want := "private_key=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n" +
		"public_key=202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f\n" +
		"allowed_ip=100.64.0.0/24\nallowed_ip=fd7a::/64\n" +
		"endpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\n"
	if c.uapi != want {
		t.Errorf("uapi:\n%swant:\n%s", c.uapi, want)
	}
	if len(c.addresses) != 2 || c.addresses[1] != netip.MustParseAddr("fd7a::2") || c.mtu != 1300 {
		t.Errorf("addresses %v, MTU %d", c.addresses, c.mtu)
	}
}

func TestParseNamesTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"[Interface]\nPrivateKey = !\n":          "line 2: privatekey",
		"[Interface]\nAddress = 100.64.0.2\n":    "line 2: ",
		"[Interface]\n\nTable = off\n":           "line 3: table is not a key",
		"what\n":                                 `line 1: "what"`,
		strings.Replace(file, "Address", "#", 1): "no Address",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestRequest(t *testing.T) {
	for _, c := range []struct {
		name string
		sent []byte
		want string // "" for an error
	}{
		{"IPv4", []byte{5, 1, 0, 5, 1, 0, 1, 192, 0, 2, 1, 0x1f, 0x90}, "192.0.2.1:8080"},
		{"IPv6", append(append([]byte{5, 2, 0, 2, 5, 1, 0, 4}, netip.MustParseAddr("fd7a::1").AsSlice()...), 0, 80), "[fd7a::1]:80"},
		{"a name", []byte{5, 1, 0, 5, 1, 0, 3, 1, 'x', 0, 80}, ""},
		{"BIND", []byte{5, 1, 0, 5, 2, 0, 1, 192, 0, 2, 1, 0, 80}, ""},
		{"cut off", []byte{5, 1, 0, 5, 1, 0, 1, 192}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			server, client := net.Pipe()
			defer server.Close()
			go func() {
				client.Write(c.sent[:2+c.sent[1]])
				answer := make([]byte, 2)
				if _, err := io.ReadFull(client, answer); err != nil || !bytes.Equal(answer, []byte{5, 0}) {
					t.Errorf("the answer to the greeting is % x, %v", answer, err)
				}
				client.Write(c.sent[2+c.sent[1]:])
				client.Close()
			}()
			got, err := request(server)
			if c.want == "" {
				if err == nil {
					t.Errorf("it is taken for %v", got)
				}
				return
			}
			if err != nil || got.String() != c.want {
				t.Errorf("got %v, %v, want %s", got, err, c.want)
			}
		})
	}
}
