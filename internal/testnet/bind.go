package testnet

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// Bind is a conn.Bind of wireguard-go over a socket of a Host. It may be opened again after Close.
type Bind struct {
	h      *Host
	family uint8 // 4 or 6: that one only; 0: both

	mu   sync.Mutex // guards the following
	sock *Socket
}

// NewBind makes one. The socket takes packets to all of the host's addresses.
func NewBind(h *Host) *Bind { return &Bind{h: h} }

// Beside returns another Bind of the host, not opened yet, for one address family: 4 or 6.
func (b *Bind) Beside(family uint8) conn.Bind { return &Bind{h: b.h, family: family} }

// Endpoint is the conn.Endpoint of a Bind.
type Endpoint netip.AddrPort

// Open implements conn.Bind.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sock != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	local := netip.Addr{}
	if b.family == 4 {
		local = netip.IPv4Unspecified()
	}
	s, err := b.h.ListenPacket(netip.AddrPortFrom(local, port))
	if err != nil {
		return nil, 0, err
	}
	b.sock = s
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, from, err := s.ReadFromUDPAddrPort(bufs[0])
		if err != nil {
			return 0, net.ErrClosed // the one reason there is
		}
		sizes[0], eps[0] = n, Endpoint(from)
		return 1, nil
	}}, s.LocalAddrPort().Port(), nil
}

// Close implements conn.Bind.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sock == nil {
		return nil
	}
	err := b.sock.Close()
	b.sock = nil
	return err
}

// Socket is the socket while the Bind is open, else nil: what else is sent from it has WireGuard's mapping in a NAT.
func (b *Bind) Socket() *Socket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sock
}

// Send implements conn.Bind.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error { return b.send(bufs, ep, 0) }

// SendTTL sends one datagram with a hop limit of its own; zero stands for the usual one.
func (b *Bind) SendTTL(msg []byte, ep conn.Endpoint, ttl uint8) error {
	return b.send([][]byte{msg}, ep, ttl)
}

func (b *Bind) send(bufs [][]byte, ep conn.Endpoint, ttl uint8) error {
	s := b.Socket()
	if s == nil {
		return net.ErrClosed
	}
	to, ok := ep.(Endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	if b.family == 6 && to.AddrPort().Addr().Is4() {
		return syscall.EAFNOSUPPORT
	}
	for _, buf := range bufs {
		if _, err := s.WriteToTTL(buf, to.AddrPort(), ttl); err != nil {
			return err
		}
	}
	return nil
}

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return Endpoint(a), err
}

// SetMark implements conn.Bind; marks mean nothing here.
func (b *Bind) SetMark(uint32) error { return nil }

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return 1 }

// AddrPort returns the address.
func (e Endpoint) AddrPort() netip.AddrPort { return netip.AddrPort(e) }

func (e Endpoint) ClearSrc()           {}
func (e Endpoint) SrcToString() string { return "" }
func (e Endpoint) DstToString() string { return netip.AddrPort(e).String() }
func (e Endpoint) DstToBytes() []byte  { b, _ := netip.AddrPort(e).MarshalBinary(); return b }
func (e Endpoint) DstIP() netip.Addr   { return netip.AddrPort(e).Addr() }
func (e Endpoint) SrcIP() netip.Addr   { return netip.Addr{} }

// pinned is package state on purpose: it must outlive every network. See Pin.
var pinned struct {
	sync.Mutex // guards the following
	peers      []*device.Peer
}

// Pin keeps the peers of a wireguard-go device from the garbage collector for good. Their queues have finalizers, which run
// outside of the synctest bubble that the queues were made in, and that is fatal. Call it in a bubble, after each change
// that adds peers. x is the *device.Device, or points to a struct that has one for a field, such as a tunnel.Tunnel.
func Pin(x any) error {
	dev := deviceOf(x)
	if dev == nil {
		return fmt.Errorf("pin peers: no device in %T", x)
	}
	text, err := dev.IpcGet()
	if err != nil {
		return fmt.Errorf("pin peers: %w", err)
	}
	pinned.Lock()
	defer pinned.Unlock()
	for line := range strings.Lines(text) {
		hexKey, ok := strings.CutPrefix(strings.TrimSpace(line), "public_key=")
		if !ok {
			continue
		}
		key, err := hex.DecodeString(hexKey)
		if err != nil || len(key) != device.NoisePublicKeySize {
			return fmt.Errorf("pin peers: public key %q", hexKey)
		}
		if p := dev.LookupPeer(device.NoisePublicKey(key)); p != nil && !slices.Contains(pinned.peers, p) {
			pinned.peers = append(pinned.peers, p)
		}
	}
	return nil
}

// deviceOf finds the device in what Pin was given.
func deviceOf(x any) *device.Device {
	if dev, ok := x.(*device.Device); ok {
		return dev
	}
	v := reflect.ValueOf(x)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	for _, f := range v.Elem().Fields() {
		if f.Type() == reflect.TypeFor[*device.Device]() && !f.IsNil() {
			return (*device.Device)(f.UnsafePointer())
		}
	}
	return nil
}
