package hotpath

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/pprof"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	wgnetstack "golang.zx2c4.com/wireguard/tun/netstack"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/netstack"
	"culvert.dev/culvert/tunnel"
)

// labelled runs fn so that the goroutines which it starts can be told in profiles.
func labelled(side string, fn func()) {
	pprof.Do(context.Background(), pprof.Labels("side", side), func(context.Context) { fn() })
}

// running is an exit that forwards what the client sends to target to a socket of the host.
type running struct {
	port   uint16 // of its WireGuard
	target netip.AddrPort
	check  func() // fails if the exit has let go of packets
}

// startExit starts an exit for one client, and for one socket of the host.
type startExit = func(t testing.TB, key wgkey.Private, client wgkey.Public, host netip.AddrPort) running

var exits = []struct {
	by    string
	start startExit
}{
	{"culvert", startCulvert},
	{"wireguard-go", startStock},
}

// startCulvert is an exit for every address. That of the host is one.
func startCulvert(t testing.TB, key wgkey.Private, client wgkey.Public, host netip.AddrPort) running {
	n := newExit(t)
	tn := startTunnel(t, n.Device(), key, tunnel.Peer{PublicKey: client, AllowedIPs: []netip.Prefix{netip.PrefixFrom(peerAddr, 32)}})
	return running{tn.ListenPort(), host, func() { nothingDropped(t, n) }}
}

func startTunnel(t testing.TB, dev tun.Device, key wgkey.Private, peer tunnel.Peer) *tunnel.Tunnel {
	tn, err := tunnel.New(dev, tunnel.Config{PrivateKey: key, Peers: []tunnel.Peer{peer}, AnyPort: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tn.Close() })
	if err := tn.Start(); err != nil {
		t.Fatal(err)
	}
	return tn
}

const servedPort = 7

// startStock is wireguard-go with what comes with it: its network stack, on which a program listens, and its sockets. It can serve
// nothing but an address of its own, and passes what comes there on to the host, as the programs built of it do.
func startStock(t testing.TB, key wgkey.Private, client wgkey.Public, host netip.AddrPort) running {
	dev, stack, err := wgnetstack.CreateNetTUN([]netip.Addr{nodeAddr}, nil, mtu)
	if err != nil {
		t.Fatal(err)
	}
	wg := device.NewDevice(dev, conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
	port := freePort(t)
	err = wg.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nallowed_ip=%s/32\n",
		key.RevealHex(), port, hex.EncodeToString(client[:]), peerAddr))
	if err != nil {
		t.Fatal(err)
	}
	if err := wg.Up(); err != nil {
		t.Fatal(err)
	}
	f := &stockForward{host: host}
	t.Cleanup(func() {
		wg.Down() // first: a packet that comes in while the device is closed makes it send on a closed channel
		f.close()
		f.running.Wait()
		wg.Close()
	})
	l, err := stack.ListenTCPAddrPort(at(nodeAddr, servedPort))
	if err != nil {
		t.Fatal(err)
	}
	u, err := stack.ListenUDPAddrPort(at(nodeAddr, servedPort))
	if err != nil {
		t.Fatal(err)
	}
	f.keep(l)
	f.keep(u)
	f.running.Go(func() { f.tcp(l) })
	f.running.Go(func() { f.udp(u) })
	return running{port, at(nodeAddr, servedPort), func() {}}
}

// freePort is one that no UDP socket has.
func freePort(t testing.TB) uint16 {
	c, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// stockForward passes on what comes to wireguard-go's network stack.
type stockForward struct {
	host    netip.AddrPort
	running sync.WaitGroup

	mu   sync.Mutex // guards the following
	open []io.Closer
}

// keep has c closed at the end.
func (f *stockForward) keep(c io.Closer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, c)
}

func (f *stockForward) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.open {
		c.Close()
	}
}

func (f *stockForward) tcp(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		h, err := net.Dial("tcp", f.host.String())
		if err != nil {
			c.Close()
			continue
		}
		f.keep(c)
		f.keep(h)
		f.running.Go(func() { io.Copy(c, h) })
		f.running.Go(func() { io.Copy(h, c) })
	}
}

// udp serves one peer.
func (f *stockForward) udp(c net.PacketConn) {
	h, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(f.host))
	if err != nil {
		return
	}
	f.keep(h)
	h.SetReadBuffer(7 << 20)
	h.SetWriteBuffer(7 << 20)
	buf := make([]byte, 1<<16)
	answering := false
	for {
		n, peer, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		h.Write(buf[:n])
		if answering {
			continue
		}
		answering = true
		f.running.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, err := h.Read(buf)
				if err != nil {
					return
				}
				c.WriteTo(buf[:n], peer)
			}
		})
	}
}

// keys are those of a client and an exit.
func keys(t testing.TB) (client, exit wgkey.Private) {
	client, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	if exit, err = wgkey.NewPrivate(); err != nil {
		t.Fatal(err)
	}
	return client, exit
}

// exitPeer is an exit, as a client's peer.
func exitPeer(key wgkey.Public, port uint16) tunnel.Peer {
	return tunnel.Peer{
		PublicKey: key, Endpoint: fmt.Sprintf("127.0.0.1:%d", port), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
	}
}

// newClient is the data path of a client whose only peer is the exit.
func newClient(t testing.TB) *netstack.Net {
	n, err := netstack.New(netstack.Config{MTU: mtu, Self: []netip.Addr{peerAddr}, Policy: clientPolicy(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}
