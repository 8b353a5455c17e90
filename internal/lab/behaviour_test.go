//go:build linux

package lab_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/lab"
)

// TestUDPBehaviours selects each combination of mapping and filtering (RFC 4787 sections 4.1 and 5) by a reload and measures what
// the exit then does.
func TestUDPBehaviours(t *testing.T) {
	t.Parallel()
	productOnly(t, "nft has one behaviour")
	w := newWorld(t, "AllowRouting = yes", "")
	const endpointIndependent, addressDependent, addressAndPortDependent = "endpoint-independent", "address-dependent", "address-and-port-dependent"
	kinds := []string{endpointIndependent, addressDependent, addressAndPortDependent}
	for i, mapping := range kinds {
		for j, filtering := range kinds {
			changed := w.config
			changed.Extra = fmt.Sprintf("[Exit]\nMapping = %s\nFiltering = %s\n", mapping, filtering)
			w.exit.WriteConf(t, changed)
			if out, err := w.exit.Client("reload"); err != nil {
				t.Fatalf("reload: %v: %s", err, out)
			}
			t.Run(mapping+" mapping, "+filtering+" filtering", func(t *testing.T) {
				bothFamilies(t, func(t *testing.T, f family) {
					port := 4100 + 10*(3*i+j) + f.i
					gotMapping, gotFiltering := behaviour(t, w, f, port)
					if gotMapping != mapping || gotFiltering != filtering {
						t.Errorf("measured %s mapping and %s filtering", gotMapping, gotFiltering)
					}
				})
			})
		}
	}
}

// behaviour measures as RFC 5780 sections 4.3 and 4.4 do, with three ends of two addresses.
func behaviour(t *testing.T, w *world, f family, port int) (mapping, filtering string) {
	first := w.S.ListenUDP(t, lab.Port(lab.Server[f.i], 3001))
	otherPort := w.S.ListenUDP(t, lab.Port(lab.Server[f.i], 3002))
	otherHost := w.S.ListenUDP(t, lab.Port(lab.Server2[f.i], 3001))
	defer func() {
		for _, c := range []*net.UDPConn{first, otherPort, otherHost} {
			c.Close()
		}
	}()
	external := func(c, server *net.UDPConn) netip.AddrPort {
		if _, err := c.WriteTo([]byte("?"), server.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		_, from := read(t, server)
		return from
	}
	c := w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], port))
	a, b, d := external(c, first), external(c, otherPort), external(c, otherHost)
	switch {
	case a == b && a == d:
		mapping = "endpoint-independent"
	case a == b:
		mapping = "address-dependent"
	default:
		mapping = "address-and-port-dependent"
	}

	c = w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], port+1000)) // which has written to the first end only
	ext := external(c, first)
	passes := func(server *net.UDPConn) bool {
		server.WriteToUDPAddrPort([]byte(server.LocalAddr().String()), ext)
		first.WriteToUDPAddrPort([]byte("marker"), ext)
		got, _ := read(t, c)
		if string(got) == "marker" {
			return false
		}
		read(t, c) // the marker
		return true
	}
	fromPort, fromHost := passes(otherPort), passes(otherHost)
	switch {
	case fromPort && fromHost:
		filtering = "endpoint-independent"
	case fromPort:
		filtering = "address-dependent"
	case !fromHost:
		filtering = "address-and-port-dependent"
	default:
		filtering = "something else"
	}
	return mapping, filtering
}
