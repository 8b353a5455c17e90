package wguapi

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzParse has any answer end in a device that makes sense, or in an error.
func FuzzParse(f *testing.F) {
	const key = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33"
	f.Add("private_key=" + key + "\nlisten_port=51820\nfwmark=0xca6c\npublic_key=" + key +
		"\nendpoint=192.0.2.1:5\nlast_handshake_time_sec=1\nlast_handshake_time_nsec=2\nrx_bytes=3\ntx_bytes=4\n" +
		"persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nprotocol_version=1\nerrno=0\n\n")
	f.Add("errno=0\n\n")
	f.Add("errno=-1\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parse(strings.NewReader(text))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, p := range d.Peers {
			if seen[p.PublicKey.Hex()] {
				t.Error("a key twice")
			}
			seen[p.PublicKey.Hex()] = true
			for _, a := range p.AllowedIPs {
				if !a.IsValid() {
					t.Error("an allowed IP that is none")
				}
			}
		}
		if again := setText([]PeerChange{{Endpoint: firstEndpoint(d)}}); strings.Count(again, "\n\n") != 1 {
			t.Errorf("a request with more than one end: %q", again)
		}
	})
}

func firstEndpoint(d Device) (e netip.AddrPort) {
	for _, p := range d.Peers {
		if p.Endpoint.IsValid() {
			return p.Endpoint
		}
	}
	return e
}
