//go:build linux

package lab_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// A client of SOCKS5 from the text of RFC 1928 and RFC 1929 alone, as no program at hand speaks UDP ASSOCIATE.

const (
	socksConnect   = 1
	socksAssociate = 3
)

// socksUser is a name and password; the zero value offers no authentication.
type socksUser struct{ name, password string }

// socksDial opens a connection from the node to a proxy.
func socksDial(node *lab.Node, proxy string) (net.Conn, error) {
	network := "tcp4"
	if proxy[0] == '[' {
		network = "tcp6"
	}
	c, err := node.Dial(network, proxy, 10*time.Second)
	if err == nil {
		c.SetDeadline(time.Now().Add(30 * time.Second))
	}
	return c, err
}

// errSOCKS is a reply other than 0.
type errSOCKS byte

func (e errSOCKS) Error() string { return fmt.Sprintf("reply %d", byte(e)) }

// socksRequest greets and sends one request. The host is an address or a name.
func socksRequest(c net.Conn, user socksUser, command byte, host string, port int) (bound netip.AddrPort, err error) {
	if err := socksGreet(c, user); err != nil {
		return bound, err
	}
	if _, err := c.Write(append([]byte{5, command, 0}, socksAddress(host, port)...)); err != nil {
		return bound, err
	}
	var head [3]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return bound, fmt.Errorf("reply: %w", err)
	}
	bound, err = readSOCKSAddress(c)
	if err == nil && head[1] != 0 {
		err = errSOCKS(head[1])
	}
	return bound, err
}

func socksGreet(c net.Conn, user socksUser) error {
	method := byte(0)
	if user.name != "" {
		method = 2
	}
	if _, err := c.Write([]byte{5, 1, method}); err != nil {
		return err
	}
	var got [2]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return fmt.Errorf("method: %w", err)
	}
	if got != [2]byte{5, method} {
		return fmt.Errorf("method %d, want %d", got[1], method)
	}
	if method == 0 {
		return nil
	}
	b := append([]byte{1, byte(len(user.name))}, user.name...)
	b = append(append(b, byte(len(user.password))), user.password...)
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	if got[1] != 0 {
		return errors.New("login refused")
	}
	return nil
}

// socksAddress is ATYP, the address and the port.
func socksAddress(host string, port int) []byte {
	var b []byte
	if a, err := netip.ParseAddr(host); err != nil {
		b = append([]byte{3, byte(len(host))}, host...)
	} else if a.Is4() {
		b = append([]byte{1}, a.AsSlice()...)
	} else {
		b = append([]byte{4}, a.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, uint16(port))
}

// readSOCKSAddress is its inverse, for addresses.
func readSOCKSAddress(r io.Reader) (a netip.AddrPort, err error) {
	b := make([]byte, 19)
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return a, err
	}
	n := map[byte]int{1: 4, 4: 16}[b[0]]
	if n == 0 {
		return a, fmt.Errorf("address of type %d", b[0])
	}
	if _, err := io.ReadFull(r, b[1:n+3]); err != nil {
		return a, err
	}
	addr, _ := netip.AddrFromSlice(b[1 : n+1])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[n+1:])), nil
}

// socksTCP connects to a host by a proxy of c.
func (w *proxied) socksTCP(proxy string, user socksUser, host string, port int) (net.Conn, error) {
	c, err := socksDial(w.C, proxy)
	if err != nil {
		return nil, err
	}
	if _, err := socksRequest(c, user, socksConnect, host, port); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// socksUDP is a UDP association.
type socksUDP struct {
	control net.Conn
	relay   netip.AddrPort
	u       *net.UDPConn
}

// associate opens an association in c.
func (w *proxied) associate(t testing.TB, proxy string, user socksUser) *socksUDP {
	t.Helper()
	control, err := socksDial(w.C, proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	host, _, _ := net.SplitHostPort(proxy)
	s := &socksUDP{control: control, u: w.C.ListenUDP(t, lab.Port(host, 0))}
	unspecified := map[bool]string{true: "0.0.0.0", false: "::"}[netip.MustParseAddr(host).Is4()]
	if s.relay, err = socksRequest(control, user, socksAssociate, unspecified, 0); err != nil {
		t.Fatalf("UDP ASSOCIATE: %v", err)
	}
	if s.relay.Addr().IsUnspecified() { // RFC 1928 does not say what that means; clients take the proxy's own
		s.relay = netip.AddrPortFrom(netip.MustParseAddr(host), s.relay.Port())
	}
	return s
}

func (s *socksUDP) send(host string, port int, payload []byte) error {
	_, err := s.u.WriteToUDPAddrPort(append(append([]byte{0, 0, 0}, socksAddress(host, port)...), payload...), s.relay)
	return err
}

// receive waits for the next datagram at most for limit.
func (s *socksUDP) receive(limit time.Duration) (payload []byte, from netip.AddrPort, err error) {
	b := make([]byte, 65536)
	s.u.SetReadDeadline(time.Now().Add(limit))
	n, sender, err := s.u.ReadFromUDPAddrPort(b)
	if err != nil {
		return nil, from, err
	}
	if sender != s.relay {
		return nil, from, fmt.Errorf("a datagram from %v, which is not the relay %v", sender, s.relay)
	}
	if n < 4 || b[0] != 0 || b[1] != 0 || b[2] != 0 {
		return nil, from, fmt.Errorf("no header: %x", b[:min(n, 16)])
	}
	r := &countingReader{b: b[3:n]}
	from, err = readSOCKSAddress(r)
	return r.b, from, err
}

// countingReader reads from a slice and keeps the rest.
type countingReader struct{ b []byte }

func (r *countingReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// exchange sends until it is answered: datagrams may be lost.
func (s *socksUDP) exchange(host string, port int, payload []byte) (answer []byte, from netip.AddrPort, err error) {
	for range 3 {
		if err := s.send(host, port, payload); err != nil {
			return nil, from, err
		}
		if answer, from, err = s.receive(soon); err == nil {
			return answer, from, nil
		}
	}
	return nil, from, err
}
