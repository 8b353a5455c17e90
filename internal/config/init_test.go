package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

func initOptions(dir string) InitOptions {
	return InitOptions{
		File:     filepath.Join(dir, "culvert", "culvert.conf"),
		Name:     "exit-1",
		Endpoint: Endpoint{Host: "192.0.2.1", Guessed: true},
		PortOf:   func(wgkey.Public) uint16 { return 55555 },
	}
}

func TestInitWritesANodeAndADeviceThatFitEachOther(t *testing.T) {
	dir := t.TempDir()
	created, err := Init(initOptions(filepath.Join(dir, "not", "there")))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{created.File, created.DeviceFile} {
		checkMode(t, file, 0o600)
		checkMode(t, filepath.Dir(file), fs.ModeDir|0o700)
	}
	node, err := Load(created.File, Options{})
	if err != nil {
		t.Fatal(err)
	}
	device, err := Load(created.DeviceFile, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(node.Warnings)+len(device.Warnings) != 0 {
		t.Errorf("got warnings %v %v", node.Warnings, device.Warnings)
	}
	n, d := node.Peers[0], device.Peers[0]
	if n.Name != "device" || n.Allow != (Allow{Inbound: true, Routing: true}) {
		t.Errorf("got peer %+v", n)
	}
	if n.PublicKey != device.Interface.PrivateKey.Public() || d.PublicKey != node.Interface.PrivateKey.Public() {
		t.Error("the keys do not match")
	}
	if n.PresharedKey.IsZero() || n.PresharedKey != d.PresharedKey {
		t.Error("the preshared keys do not match")
	}
	if !slices.Equal(n.AllowedIPs, device.Interface.Addresses) || len(n.AllowedIPs) != 2 {
		t.Errorf("node allows %v, device has %v", n.AllowedIPs, device.Interface.Addresses)
	}
	if fmt.Sprint(d.AllowedIPs) != "[0.0.0.0/0 ::/0]" || d.Endpoint != "192.0.2.1:55555" || d.PersistentKeepalive.Seconds() != 25 {
		t.Errorf("got the device's peer %+v", d)
	}
	if node.Interface.ListenPort != 55555 || node.Interface.Name != "exit-1" {
		t.Errorf("got node %+v", node.Interface)
	}
	var own []netip.AddrPort
	for i, p := range node.Interface.Addresses {
		own = append(own, netip.AddrPortFrom(p.Addr(), dnsPort))
		if p.Addr() != p.Masked().Addr().Next() || n.AllowedIPs[i].Addr() != p.Addr().Next() || !p.Contains(n.AllowedIPs[i].Addr()) {
			t.Errorf("node has %s, device %s", p, n.AllowedIPs[i])
		}
	}
	if !slices.Equal(device.Interface.DNS, own) {
		t.Errorf("device asks %v, node is %v", device.Interface.DNS, own)
	}
}

func TestInitTakesTheEndpointsPortAndAvoidsNetworks(t *testing.T) {
	o := initOptions(t.TempDir())
	o.Endpoint = Endpoint{Host: "vpn.example", Port: 443}
	o.OnLink = prefixes("100.64.0.0/11", "fd00::/9")
	o.Name = "device"
	created, err := Init(o)
	if err != nil {
		t.Fatal(err)
	}
	node, err := Load(created.File, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if node.Interface.ListenPort != 443 || created.Device.Endpoint.String() != "vpn.example:443" {
		t.Errorf("got port %d, endpoint %s", node.Interface.ListenPort, created.Device.Endpoint)
	}
	if filepath.Base(created.DeviceFile) != "device-1.conf" || node.Peers[0].Name != "device-1" {
		t.Errorf("on a node named device: got %s, %s", created.DeviceFile, node.Peers[0].Name)
	}
	for _, p := range node.Interface.Addresses {
		if slices.ContainsFunc(o.OnLink, p.Overlaps) {
			t.Errorf("%s overlaps a network of the host", p)
		}
	}
	if strings.Contains(created.Device.Text(), "NAT") {
		t.Errorf("a note on guessing with a given endpoint:\n%s", created.Device.Text())
	}
}

func TestInitNeverOverwrites(t *testing.T) {
	for _, existing := range []string{"culvert.conf", "device.conf"} {
		dir := put(t, map[string]string{"culvert/" + existing: "precious"})
		_, err := Init(initOptions(dir))
		file := filepath.Join(dir, "culvert", existing)
		if want := "create " + file + ": it is there already, and is never overwritten"; err == nil || err.Error() != want {
			t.Errorf("got error %v, want %s", err, want)
		}
		names, _ := os.ReadDir(filepath.Dir(file))
		text, _ := os.ReadFile(file)
		if len(names) != 1 || string(text) != "precious" {
			t.Errorf("left %v, content %q", names, text)
		}
	}
	o := initOptions(t.TempDir())
	o.File = filepath.Join(filepath.Dir(o.File), "device.conf")
	if _, err := Init(o); err == nil || !strings.Contains(err.Error(), "choose another for the configuration") {
		t.Errorf("configuration named as the device's file: got error %v", err)
	}
}

func TestInitWhereNothingCanBeWritten(t *testing.T) {
	dir := put(t, map[string]string{"culvert": "a file, not a folder"})
	_, err := Init(initOptions(dir))
	if file := filepath.Join(dir, "culvert", "culvert.conf"); err == nil || !strings.HasPrefix(err.Error(), "create "+file) {
		t.Errorf("got error %v", err)
	}
	if os.Geteuid() == 0 {
		t.Log("SKIP read-only folder: root may write everywhere")
		return
	}
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(initOptions(dir)); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) {
		t.Errorf("read-only folder: got error %v", err)
	}
}

func TestExportText(t *testing.T) {
	private, _ := wgkey.ParsePrivate(keyText)
	public, _ := wgkey.ParsePublic(peerKey1)
	psk, _ := wgkey.ParsePreshared(pskText)
	full := Export{
		PrivateKey:   private,
		Addresses:    []netip.Addr{netip.MustParseAddr("100.64.7.2"), netip.MustParseAddr("fd7a::2")},
		DNS:          []netip.Addr{netip.MustParseAddr("100.64.7.1")},
		MTU:          1380,
		NodeName:     "exit-1",
		PublicKey:    public,
		PresharedKey: psk,
		AllowedIPs:   prefixes("0.0.0.0/0", "::/0"),
		Endpoint:     Endpoint{Host: "2001:db8::1", Port: 51820, Guessed: true},
	}
	const compact = `[Interface]
PrivateKey = ` + keyText + `
Address = 100.64.7.2/32, fd7a::2/128
DNS = 100.64.7.1
MTU = 1380
[Peer]
PublicKey = ` + peerKey1 + `
PresharedKey = ` + pskText + `
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25
`
	if got := full.QRText(); got != compact {
		t.Errorf("got:\n%s\nwant:\n%s", got, compact)
	}
	if got := full.Text(); !strings.Contains(got, "forward UDP port 51820\n") {
		t.Errorf("no note on the guessed endpoint:\n%s", got)
	}
	bare := Export{Addresses: full.Addresses, MTU: DefaultMTU, PublicKey: public, AllowedIPs: prefixes("100.64.7.0/24"), Endpoint: Endpoint{Host: "h", Port: 1}}
	want := "[Interface]\nAddress = 100.64.7.2/32, fd7a::2/128\n[Peer]\nPublicKey = " + peerKey1 +
		"\nAllowedIPs = 100.64.7.0/24\nEndpoint = h:1\nPersistentKeepalive = 25\n"
	if got := bare.QRText(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if got := bare.Text(); !strings.Contains(got, "# PrivateKey = the private key of this device\n") {
		t.Errorf("no place for the private key:\n%s", got)
	}
	if got := fmt.Sprintf("%v %+v", full, full); strings.Contains(got, keyText) || strings.Contains(got, pskText) {
		t.Errorf("printing an Export shows a secret: %s", got)
	}
}

func TestExportFollowsWhatThePeerMayReach(t *testing.T) {
	cfg := &Config{Interface: Interface{PrivateKey: mustKey(t), MTU: DefaultMTU, Addresses: prefixes("100.64.7.1/24", "fd7a::1/128")}}
	peer := Peer{AllowedIPs: prefixes("100.64.7.2/32", "192.168.7.0/24")}
	e := cfg.Export(peer, wgkey.Private{}, Endpoint{Host: "h", Port: 1})
	if fmt.Sprint(e.Addresses, e.AllowedIPs, e.DNS) != "[100.64.7.2] [100.64.7.0/24 fd7a::/64] []" {
		t.Errorf("without routing: got %v %v %v", e.Addresses, e.AllowedIPs, e.DNS)
	}
	peer.Allow.Routing = true
	e = cfg.Export(peer, wgkey.Private{}, Endpoint{Host: "h", Port: 1})
	if fmt.Sprint(e.AllowedIPs, e.DNS) != "[0.0.0.0/0 ::/0] [100.64.7.1 fd7a::1]" {
		t.Errorf("with routing: got %v %v", e.AllowedIPs, e.DNS)
	}
	cfg.Exit.DNS.Off = true
	if e = cfg.Export(peer, wgkey.Private{}, Endpoint{Host: "h", Port: 1}); len(e.DNS) != 0 {
		t.Errorf("with DNS off: got %v", e.DNS)
	}
}

func checkMode(t *testing.T, file string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != want {
		t.Errorf("%s: got mode %v, want %v", file, info.Mode(), want)
	}
}
