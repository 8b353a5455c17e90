package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

// InitOptions describes a node that does not exist yet.
type InitOptions struct {
	File     string                    // the configuration to write; nothing may be there
	Name     string                    // of the node; a DNS label
	Device   string                    // name of the first device; default "device", or "device-1" on a node of that name
	Endpoint Endpoint                  // where devices find the node; a Port is its ListenPort too
	PortOf   func(wgkey.Public) uint16 // ListenPort of a node whose endpoint has none
	OnLink   []netip.Prefix            // this host's networks, which the mesh must not overlap
}

// Created is what Init wrote.
type Created struct {
	File       string // the configuration
	DeviceFile string // the wg-quick file of the first device, beside it
	Device     Export
}

// Init writes a commented configuration with a fresh identity and one device that may use this node as its exit, and that
// device's wg-quick file. Both have mode 0600. If either file exists, nothing is written and the error wraps fs.ErrExist.
func Init(o InitOptions) (*Created, error) {
	if o.Device == "" {
		o.Device = "device"
		if strings.EqualFold(o.Name, o.Device) {
			o.Device = "device-1"
		}
	}
	deviceFile := filepath.Join(filepath.Dir(o.File), o.Device+".conf")
	if deviceFile == filepath.Clean(o.File) {
		return nil, fmt.Errorf("create %s: the first device's file has that name; choose another for the configuration", o.File)
	}
	for _, file := range []string{o.File, deviceFile} {
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				err = errors.New("it is there already, and is never overwritten")
			}
			return nil, fmt.Errorf("create %s: %w", file, cause(err))
		}
	}
	cfg, err := newNode(o)
	if err != nil {
		return nil, err
	}
	plan, err := cfg.PlanPeer(NewPeer{Name: o.Device, Allow: Allow{Inbound: true, Routing: true}})
	if err != nil {
		return nil, err
	}
	if o.Endpoint.Port == 0 {
		o.Endpoint.Port = cfg.Interface.ListenPort
	}
	created := &Created{o.File, deviceFile, cfg.Export(plan.Peer, plan.PrivateKey, o.Endpoint)}
	if err := WriteSecret(o.File, initText(cfg.Interface, plan.Peer, deviceFile)); err != nil {
		return nil, err
	}
	if err := WriteSecret(deviceFile, created.Device.Text()); err != nil {
		return nil, errors.Join(err, os.Remove(o.File))
	}
	return created, nil
}

// newNode draws an identity and gives it addresses.
func newNode(o InitOptions) (*Config, error) {
	name, err := ParseName(o.Name)
	if err != nil {
		return nil, fmt.Errorf("name of the node: %w", err)
	}
	private, err := wgkey.NewPrivate()
	if err != nil {
		return nil, err
	}
	v4, v6, err := meshPrefixes(private.Public(), o.OnLink)
	if err != nil {
		return nil, err
	}
	port := o.Endpoint.Port
	if port == 0 {
		port = o.PortOf(private.Public())
	}
	var at Endpoint // a guess may be wrong tomorrow
	if !o.Endpoint.Guessed {
		at = Endpoint{Host: o.Endpoint.Host, Port: port}
	}
	first := func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr().Next(), p.Bits()) }
	return &Config{File: o.File, Interface: Interface{
		Name:       name,
		PrivateKey: private,
		Addresses:  []netip.Prefix{first(v4), first(v6)},
		ListenPort: port,
		Endpoint:   at,
		MTU:        DefaultMTU,
	}}, nil
}

// initText is the configuration of a new node. It contains the private key.
func initText(node Interface, device Peer, deviceFile string) string {
	var b strings.Builder
	b.WriteString(`# Culvert's configuration: a wg-quick file with sections of its own. Keys that are commented out show their defaults
# or an example. "culvert check" validates this file, "culvert reload" applies it to a running node.

[Interface]
`)
	fmt.Fprintf(&b, "Name = %s\n", node.Name)
	fmt.Fprintf(&b, "# The node's identity: whoever can read this key can be this node.\nPrivateKey = %s\n", node.PrivateKey.Reveal())
	fmt.Fprintf(&b, "# The node inside the tunnel; new devices get addresses of the same prefixes.\nAddress = %s\n", join(node.Addresses))
	fmt.Fprintf(&b, "# The UDP port that devices and other nodes send to.\nListenPort = %d\n", node.ListenPort)
	b.WriteString("# Where devices find this node, for the files that culvert peer add makes.\n")
	if node.Endpoint.Host == "" {
		b.WriteString("# Endpoint = vpn.example.org\n")
	} else {
		fmt.Fprintf(&b, "Endpoint = %s\n", node.Endpoint)
	}
	fmt.Fprintf(&b, "# MTU = %d\n\n", DefaultMTU)
	b.WriteString(peerText(device, "The first device; its own WireGuard file is "+deviceFile))
	b.WriteString(`
# More devices: culvert peer add NAME --qr

# Programs of this host reach the mesh by proxies and forwards, and peers with AllowInbound reach what is published:
# [SOCKS5]
# Listen = 127.0.0.1:1080
# HTTP = yes
# Traffic to the internet may leave by peers, the first that works:
# Exit = exit-1, exit-2
# Route = *.corp.example via office
# [Forward]
# Listen = 127.0.0.1:5432
# To = db:5432
# [Publish]
# Listen = 8443
# To = 127.0.0.1:443

[Filter]
# Parts of what peers may reach can be taken back; the first rule that matches decides:
# Rule = reject from * to * tcp/25

[Exit]
# More destinations that no peer may reach:
# DenyTo = 198.51.100.0/24
# Exceptions to the built-in denials:
# AllowTo = 169.254.169.254/32
# The resolver served to peers at this node's address: system, off, or addresses.
# DNS = system

# Relays connect this node with others where no UDP gets through, or where neither end knows an address of the other. One's
# own is "culvert relay" on any public host; "culvert relay config" there prints these three sections as they are to be.
# [Relay]
# URL = https://relay.example
# Where this node is seen from outside, by STUN and by WireGuard itself:
# [STUN]
# Server = relay.example:3478
# [WGSTUN]
# PublicKey = the key of the WG-STUN server
# Endpoint = relay.example:3479

# Peers behind a relay are moved to direct paths where one can be made:
# [Traversal]
# Direct = yes
# PortMapping = yes
# Techniques for hard NATs, which may send some thousand datagrams:
# HardNAT = yes
# A port forward that was made by hand, as peers see it:
# Candidate = 203.0.113.7:51820

[Control]
# The socket that culvert status, reload and health use.
# Socket = /run/culvert/control.sock
`)
	return b.String()
}

// peerText is a peer's section. It contains the preshared key.
func peerText(p Peer, comment string) string {
	yesNo := map[bool]string{true: "yes", false: "no"}
	var b strings.Builder
	b.WriteString("[Peer]\n")
	if comment != "" {
		fmt.Fprintf(&b, "# %s\n", comment)
	}
	fmt.Fprintf(&b, "Name = %s\nPublicKey = %s\n", p.Name, p.PublicKey)
	if !p.PresharedKey.IsZero() {
		fmt.Fprintf(&b, "PresharedKey = %s\n", p.PresharedKey.Reveal())
	}
	fmt.Fprintf(&b, "AllowedIPs = %s\n", join(p.AllowedIPs))
	if p.Endpoint != "" {
		fmt.Fprintf(&b, "Endpoint = %s\n", p.Endpoint)
	}
	if p.PersistentKeepalive != 0 {
		fmt.Fprintf(&b, "PersistentKeepalive = %d\n", int(p.PersistentKeepalive.Seconds()))
	}
	if len(p.AllowPeers) > 0 {
		fmt.Fprintf(&b, "AllowPeers = %s\n", strings.Join(p.AllowPeers, ", "))
	}
	if p.Rate != 0 {
		fmt.Fprintf(&b, "# In each direction:\nRate = %s\n", p.Rate)
	}
	if p.MaxFlows != 0 {
		fmt.Fprintf(&b, "MaxFlows = %d\n", p.MaxFlows)
	}
	fmt.Fprintf(&b, "# Services published on this node's mesh addresses:\nAllowInbound = %s\n", yesNo[p.Allow.Inbound])
	fmt.Fprintf(&b, "# The internet through this node, and its DNS:\nAllowRouting = %s\n", yesNo[p.Allow.Routing])
	fmt.Fprintf(&b, "# This host's local networks too, when routing:\nAllowLAN = %s\n", yesNo[p.Allow.LAN])
	return b.String()
}
