package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn/bindtest"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
)

// fakeKernel answers with what it was given and keeps what it is told.
type fakeKernel struct {
	device *wgtypes.Device
	told   []wgtypes.Config
	err    error
}

func (f *fakeKernel) Device(string) (*wgtypes.Device, error) { return f.device, f.err }
func (f *fakeKernel) ConfigureDevice(_ string, c wgtypes.Config) error {
	f.told = append(f.told, c)
	return f.err
}
func (f *fakeKernel) Close() error { return nil }

func TestKernelsDeviceIsRead(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	prefix := func(s string) net.IPNet {
		_, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		return *n
	}
	private, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	k := &kernelDevice{"wg0", &fakeKernel{device: &wgtypes.Device{
		PrivateKey: wgtypes.Key(private.RevealBytes()), ListenPort: 51820, FirewallMark: 0xca6c,
		Peers: []wgtypes.Peer{
			{
				PublicKey: wgtypes.Key{2}, Endpoint: &net.UDPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 1000}, LastHandshakeTime: now,
				ReceiveBytes: 10, TransmitBytes: 20, PersistentKeepaliveInterval: 25 * time.Second,
				AllowedIPs: []net.IPNet{prefix("10.0.0.2/32"), prefix("fd00::/64"), prefix("0.0.0.0/0")},
			},
			{PublicKey: wgtypes.Key{3}},
		},
	}}}
	got, err := k.Get(context.Background())
	want := wguapi.Device{
		PrivateKey: private, ListenPort: 51820, FirewallMark: 0xca6c,
		Peers: []wguapi.Peer{
			{
				PublicKey: wgkey.Public{2}, Endpoint: netip.MustParseAddrPort("203.0.113.7:1000"), LastHandshake: now, RxBytes: 10, TxBytes: 20,
				Keepalive: 25 * time.Second,
				AllowedIPs: []netip.Prefix{
					netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("0.0.0.0/0"),
				},
			},
			{PublicKey: wgkey.Public{3}},
		},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestKernelsDeviceIsChanged(t *testing.T) {
	f := &fakeKernel{}
	k := &kernelDevice{"wg0", f}
	err := k.Set(context.Background(),
		wguapi.PeerChange{PublicKey: wgkey.Public{1}, UpdateOnly: true, Endpoint: netip.MustParseAddrPort("[2001:db8::7]:1000")},
		wguapi.PeerChange{PublicKey: wgkey.Public{2}, Remove: true, UpdateOnly: true},
		wguapi.PeerChange{PublicKey: wgkey.Public{3}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.4/32")}, SetKeepalive: true, Keepalive: 0},
	)
	if err != nil || len(f.told) != 1 || len(f.told[0].Peers) != 3 {
		t.Fatalf("told %+v, %v", f.told, err)
	}
	c := f.told[0]
	if c.PrivateKey != nil || c.ListenPort != nil || c.FirewallMark != nil || c.ReplacePeers {
		t.Errorf("more than peers is changed: %+v", c)
	}
	one, two, three := c.Peers[0], c.Peers[1], c.Peers[2]
	if !one.UpdateOnly || one.Endpoint.String() != "[2001:db8::7]:1000" || one.PersistentKeepaliveInterval != nil || one.ReplaceAllowedIPs || one.AllowedIPs != nil {
		t.Errorf("an endpoint: %+v", one)
	}
	if !two.Remove || !two.UpdateOnly {
		t.Errorf("a removal: %+v", two)
	}
	if len(three.AllowedIPs) != 1 || three.AllowedIPs[0].String() != "10.0.0.4/32" || three.PersistentKeepaliveInterval == nil || *three.PersistentKeepaliveInterval != 0 || three.UpdateOnly {
		t.Errorf("a new peer: %+v", three)
	}
}

func TestKernelsErrorsSayWhatToDo(t *testing.T) {
	k := &kernelDevice{"wg0", &fakeKernel{err: os.NewSyscallError("netlink", fs.ErrPermission)}}
	if _, err := k.Get(context.Background()); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "wg0") || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("got %v", err)
	}
}

// TestKernelsDeviceAgreesWithUAPI drives stock wireguard-go by the library that otherwise speaks to the kernel, and by its own
// socket: both must see and do the same.
func TestKernelsDeviceAgreesWithUAPI(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the library finds sockets in /var/run/wireguard alone, where only root makes them")
	}
	name := fmt.Sprintf("culv%d", os.Getpid()%100_000_000)
	own := wguapi.SocketPath(name)
	if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
		t.Skipf("no place for the socket: %v", err)
	}
	l, err := net.Listen("unix", own)
	if err != nil {
		t.Skipf("no socket there: %v", err)
	}
	d := wgdevice.NewDevice(tuntest.NewChannelTUN().TUN(), bindtest.NewChannelBinds()[0], wgdevice.NewLogger(wgdevice.LogLevelSilent, ""))
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done; d.Close() })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go d.IpcHandle(c)
		}
	}()
	private, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.IpcSet(fmt.Sprintf("private_key=%s\n", private.RevealHex())); err != nil {
		t.Fatal(err)
	}
	k, err := openKernel(name)
	if err != nil {
		t.Skipf("the library does not work here: %v", err)
	}
	defer k.Close()
	ctx := context.Background()
	peer, gone := wgkey.Public{9, 1}, wgkey.Public{9, 2}
	for _, c := range []wguapi.PeerChange{
		{PublicKey: peer, Endpoint: netip.MustParseAddrPort("192.0.2.7:1000"), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd00:9::7/128")}, SetKeepalive: true, Keepalive: 25 * time.Second},
		{PublicKey: gone},
		{PublicKey: peer, UpdateOnly: true, Endpoint: netip.MustParseAddrPort("[2001:db8::7]:2000")},
		{PublicKey: gone, Remove: true, UpdateOnly: true},
	} {
		if err := k.Set(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	got, err := k.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want, err := wguapi.NewClient(own).Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) || len(got.Peers) != 1 || got.Peers[0].Endpoint.Port() != 2000 || len(got.Peers[0].AllowedIPs) != 2 || got.Peers[0].Keepalive != 25*time.Second {
		t.Errorf("by the library %+v\nby the socket %+v", got, want)
	}
}
