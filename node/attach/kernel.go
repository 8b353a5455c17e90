package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
)

// kernelDevice is a WireGuard of the kernel's, which is configured by netlink. It is a device as wguapi.Client is one.
type kernelDevice struct {
	name   string
	client kernelClient
}

// kernelClient is what is used of wgctrl.Client.
type kernelClient interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, cfg wgtypes.Config) error
	Close() error
}

func openKernel(name string) (*kernelDevice, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("WireGuard interface %s: %w", name, err)
	}
	return &kernelDevice{name: name, client: c}, nil
}

// Get implements device.
func (k *kernelDevice) Get(context.Context) (wguapi.Device, error) {
	d, err := k.client.Device(k.name)
	if err != nil {
		return wguapi.Device{}, k.explain(err)
	}
	out := wguapi.Device{ListenPort: uint16(d.ListenPort), FirewallMark: uint32(d.FirewallMark)}
	if d.PrivateKey != (wgtypes.Key{}) {
		if out.PrivateKey, err = wgkey.ParsePrivate(d.PrivateKey.String()); err != nil {
			return wguapi.Device{}, k.explain(err)
		}
	}
	for _, p := range d.Peers {
		out.Peers = append(out.Peers, peerOf(&p))
	}
	return out, nil
}

// peerOf leaves out what is no address.
func peerOf(p *wgtypes.Peer) wguapi.Peer {
	out := wguapi.Peer{
		PublicKey: wgkey.Public(p.PublicKey), LastHandshake: p.LastHandshakeTime, Keepalive: p.PersistentKeepaliveInterval,
		RxBytes: uint64(p.ReceiveBytes), TxBytes: uint64(p.TransmitBytes),
	}
	if p.Endpoint != nil {
		e := p.Endpoint.AddrPort()
		out.Endpoint = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
	}
	for _, a := range p.AllowedIPs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ones, bits := a.Mask.Size(); ok && bits > 0 {
			out.AllowedIPs = append(out.AllowedIPs, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return out
}

// Set implements device.
func (k *kernelDevice) Set(_ context.Context, changes ...wguapi.PeerChange) error {
	var cfg wgtypes.Config
	for i := range changes {
		cfg.Peers = append(cfg.Peers, changeOf(&changes[i]))
	}
	if err := k.client.ConfigureDevice(k.name, cfg); err != nil {
		return k.explain(err)
	}
	return nil
}

func changeOf(c *wguapi.PeerChange) wgtypes.PeerConfig {
	p := wgtypes.PeerConfig{PublicKey: wgtypes.Key(c.PublicKey), Remove: c.Remove, UpdateOnly: c.UpdateOnly}
	if c.Remove {
		return p
	}
	if c.Endpoint.IsValid() {
		p.Endpoint = net.UDPAddrFromAddrPort(c.Endpoint)
	}
	if c.SetKeepalive {
		p.PersistentKeepaliveInterval = &c.Keepalive
	}
	for _, a := range c.AllowedIPs {
		p.AllowedIPs = append(p.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())})
	}
	return p
}

// Close gives up the connection to the kernel.
func (k *kernelDevice) Close() error { return k.client.Close() }

func (k *kernelDevice) explain(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("WireGuard interface %s: %w: it is the kernel's, which asks for the capability NET_ADMIN", k.name, fs.ErrPermission)
	}
	return fmt.Errorf("WireGuard interface %s: %w", k.name, err)
}
