package portmap

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// FuzzPCP: what is taken for a response to a request is one, whatever arrives.
func FuzzPCP(f *testing.F) {
	for _, s := range []string{pcpSuccess, `00 81 0001 00000064`, `02 80 00 00 00000000 00000001 00000000 00000000 00000000`, ``} {
		f.Add(unhex(f, s))
	}
	r := &pcpMapRequest{client: netip.MustParseAddr("192.168.1.2"), nonce: someNonce, internal: 51820}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := parsePCP(b)
		if !ok || !a.answers(r) || a.err() != nil {
			return
		}
		if len(b) < pcpMapLen || b[0] != 2 || b[1] != 0x81 || b[3] != 0 || !bytes.Equal(b[24:36], someNonce[:]) {
			t.Errorf("%x is taken", b)
		}
		if a.external.Addr().Is4In6() {
			t.Errorf("%v is not unmapped", a.external)
		}
	})
}

func FuzzNATPMP(f *testing.F) {
	for _, s := range []string{`00 80 0000 00000064 c6336407`, `00 81 0000 00000064 ca6c 0fa0 00001c20`, `00 81 0002 00000064`, `02 80 00 01`} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := parsePMP(b)
		switch {
		case !ok:
		case b[1]&0x80 == 0:
			t.Errorf("the request %x is taken for a response", b)
		case a.version == 0 && a.code == 0 && a.opcode == pmpAddress && (len(b) != pmpAddressLen || !a.address.Is4()):
			t.Errorf("%x: %+v", b, a)
		case a.version == 0 && a.code == 0 && a.opcode == pmpMapUDP && len(b) != pmpMapLen:
			t.Errorf("%x: %+v", b, a)
		}
		parseAnnouncement(b)
	})
}

// checkLocation fails unless a location can only lead to a host by its address.
func checkLocation(t *testing.T, l location) {
	t.Helper()
	if !l.host.IsValid() || l.port == 0 || !strings.HasPrefix(l.path, "/") || strings.ContainsAny(l.path, "\r\n ") {
		t.Errorf("%+v", l)
	}
}

func FuzzSSDP(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 200\nlocation:http://[fe80::1%25e]/?a#b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, ok := parseSearchAnswer(b); ok {
			checkLocation(t, l)
		}
	})
}

func FuzzDescription(f *testing.F) {
	f.Add([]byte(device(2, "<URLBase>http://10.0.0.1:1/</URLBase>", [2]string{typeIP + "2", "x"}, [2]string{typeFirewall + "1", "//[::1]/y"})))
	f.Add([]byte(`<!DOCTYPE a><a/>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDescription(b, location{netip.MustParseAddr("192.168.1.1"), 80, "/"})
		if err != nil {
			return
		}
		if len(d.services) > maxServices || len(d.model) > 96 {
			t.Errorf("%+v", d)
		}
		for _, s := range d.services {
			checkLocation(t, s.control)
		}
	})
}

func FuzzSOAP(f *testing.F) {
	f.Add([]byte(soapFault(718)))
	f.Add([]byte(envelope(`<u:XResponse><A>1</A></u:XResponse>`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		values, err := parseSOAP(b, "X")
		if err != nil && values != nil {
			t.Errorf("values %v with %v", values, err)
		}
		for _, v := range values {
			if len(v) > maxText {
				t.Errorf("a value of %d bytes", len(v))
			}
		}
	})
}
