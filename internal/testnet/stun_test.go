package testnet

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v3"

	"culvert.dev/culvert/nat"
)

// A STUN server and client for behaviour discovery (RFC 5780), on messages of an independent implementation.

// Flags of CHANGE-REQUEST, RFC 5780 section 7.2.
const (
	changeIP   = 4
	changePort = 2
)

// stunServer answers at two addresses and two ports.
type stunServer struct {
	socks [2][2]*Socket // by address, port
}

var stunPorts = [2]uint16{3478, 3479}

func newSTUNServer(t testing.TB, r *Router) *stunServer {
	t.Helper()
	h := r.Host("stun", HostConfig{Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("198.51.100.11")}})
	s := new(stunServer)
	for i, a := range h.Addrs() {
		for j, p := range stunPorts {
			c, err := h.ListenPacket(netip.AddrPortFrom(a, p))
			if err != nil {
				t.Fatal(err)
			}
			s.socks[i][j] = c
			go s.serve(i, j)
		}
	}
	t.Cleanup(func() {
		for _, row := range s.socks {
			row[0].Close()
			row[1].Close()
		}
	})
	return s
}

func (s *stunServer) addr(i, j int) netip.AddrPort { return s.socks[i][j].LocalAddrPort() }

func (s *stunServer) serve(i, j int) {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.socks[i][j].ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		m := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
		if m.Decode() != nil || m.Type != stun.BindingRequest {
			continue
		}
		a, p := i, j
		if v, err := m.Get(stun.AttrChangeRequest); err == nil && len(v) == 4 {
			if v[3]&changeIP != 0 {
				a = 1 - a
			}
			if v[3]&changePort != 0 {
				p = 1 - p
			}
		}
		to := from
		if v, err := m.Get(stun.AttrResponsePort); err == nil && len(v) >= 2 {
			to = netip.AddrPortFrom(from.Addr(), binary.BigEndian.Uint16(v))
		}
		origin, other := s.addr(a, p), s.addr(1-i, 1-j)
		answer := stun.MustBuild(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
			&stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())},
			&stun.ResponseOrigin{IP: origin.Addr().AsSlice(), Port: int(origin.Port())},
			&stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())},
		)
		s.socks[a][p].WriteToUDPAddrPort(answer.Raw, to)
	}
}

// bind asks the server at to from the socket and returns the mapped address of an answer, whoever sends it; the zero
// AddrPort if there is none. change is a CHANGE-REQUEST; respond, if not 0, a RESPONSE-PORT, whose answer the socket listen
// waits for.
func bind(s *Socket, to netip.AddrPort, change byte, respond uint16, listen *Socket) netip.AddrPort {
	req := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	if change != 0 {
		req.Add(stun.AttrChangeRequest, []byte{0, 0, 0, change})
	}
	if respond != 0 {
		req.Add(stun.AttrResponsePort, []byte{byte(respond >> 8), byte(respond), 0, 0})
	}
	buf := make([]byte, 1500)
	for range 2 {
		if _, err := s.WriteToUDPAddrPort(req.Raw, to); err != nil {
			return netip.AddrPort{}
		}
		listen.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		for {
			n, _, err := listen.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			m := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
			var mapped stun.XORMappedAddress
			if m.Decode() != nil || m.TransactionID != req.TransactionID || mapped.GetFrom(m) != nil {
				continue
			}
			a, _ := netip.AddrFromSlice(mapped.IP)
			return netip.AddrPortFrom(a.Unmap(), uint16(mapped.Port))
		}
	}
	return netip.AddrPort{}
}

// behaviour is what discovery finds.
type behaviour struct {
	reachable          bool
	mapping, filtering nat.Dependence
	hairpin            bool
}

// discover runs the tests of RFC 5780 sections 4.3 to 4.5 from h; hairpinning is tested in the form of RFC 4787 section 6,
// between two sockets of the host.
func discover(t testing.TB, h *Host, s *stunServer) (b behaviour) {
	t.Helper()
	sock := func() *Socket { return listen(t, h, 0) }
	one := sock()
	m1 := bind(one, s.addr(0, 0), 0, 0, one)
	if !m1.IsValid() {
		return b
	}
	b.reachable = true
	m2 := bind(one, s.addr(1, 0), 0, 0, one)
	m3 := bind(one, s.addr(1, 1), 0, 0, one)
	switch {
	case m1 == m2:
		b.mapping = nat.EndpointIndependent
	case m2 == m3:
		b.mapping = nat.AddressDependent
	default:
		b.mapping = nat.AddressAndPortDependent
	}

	fresh := sock()
	bind(fresh, s.addr(0, 0), 0, 0, fresh)
	switch {
	case bind(fresh, s.addr(0, 0), changeIP|changePort, 0, fresh).IsValid():
		b.filtering = nat.EndpointIndependent
	case bind(fresh, s.addr(0, 0), changePort, 0, fresh).IsValid():
		b.filtering = nat.AddressDependent
	default:
		b.filtering = nat.AddressAndPortDependent
	}
	b.hairpin = hairpins(t, sock(), sock(), s)
	return b
}

// hairpins reports whether datagrams of two sockets behind one NAT reach each other by their outer addresses, with the outer
// source (RFC 4787 REQ-9 a). Both send, so that filters are open. A socket must reach itself if and only if it reaches the
// other one (that is the test of RFC 5780 section 3.4).
func hairpins(t testing.TB, x, y *Socket, s *stunServer) bool {
	t.Helper()
	mx, my := bind(x, s.addr(0, 0), 0, 0, x), bind(y, s.addr(0, 0), 0, 0, y)
	buf := make([]byte, 100)
	x.WriteToUDPAddrPort([]byte("self"), mx)
	x.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	n, self, err := x.ReadFromUDPAddrPort(buf)
	itself := err == nil && string(buf[:n]) == "self" && self.Addr() == mx.Addr()
	other := meet(t, x, y, mx, my)
	if itself != other {
		t.Errorf("reaches itself: %v, another: %v", itself, other)
	}
	return other
}

// meet has both sockets send to each other's outer address.
func meet(t testing.TB, x, y *Socket, mx, my netip.AddrPort) bool {
	t.Helper()
	buf := make([]byte, 100)
	for range 3 {
		x.WriteToUDPAddrPort([]byte("hairpin"), my)
		y.WriteToUDPAddrPort([]byte("hairpin"), mx)
		for _, c := range []*Socket{x, y} {
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if n, from, err := c.ReadFromUDPAddrPort(buf); err == nil {
				if string(buf[:n]) != "hairpin" || from.Addr() != mx.Addr() {
					t.Errorf("hairpinned %q came from %v, want the outer address %v", buf[:n], from, mx.Addr())
				}
				return true
			}
		}
	}
	return false
}

// lifetime finds how long a mapping lives without traffic, by the method of RFC 5780 section 4.6: for each time that is
// tried, another socket asks for an answer to the mapping after it has been idle for so long.
func lifetime(t testing.TB, h *Host, s *stunServer, from, to time.Duration) time.Duration {
	t.Helper()
	alive := func(idle time.Duration) bool {
		x, y := listen(t, h, 0), listen(t, h, 0)
		defer x.Close()
		defer y.Close()
		mapped := bind(x, s.addr(0, 0), 0, 0, x)
		time.Sleep(idle)
		return bind(y, s.addr(0, 0), 0, mapped.Port(), x).IsValid()
	}
	for to-from > time.Second {
		mid := (from + to) / 2
		if alive(mid) {
			from = mid
		} else {
			to = mid
		}
	}
	return from
}
