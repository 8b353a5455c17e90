package netcheck

import (
	"context"
	"net"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/portmap"
	"culvert.dev/culvert/traversal/relay"
)

// Config says what to ask. Without servers only what this host itself knows is reported.
type Config struct {
	STUN          []string       // servers as "host:port"
	Relays        []relay.Server // tried by a connection each
	Key           wgkey.Private  // for the relays; zero: one that is thrown away
	NoPortMapping bool           // leave the gateway alone
	OtherRelays   bool           // there are relays, which are known by other means than Run

	// Lifetime has Run find out how long an idle mapping lives too, which takes longer than that: at most MaxLifetime and some
	// seconds. When ctx ends meanwhile, what is known by then is reported.
	Lifetime    bool
	MaxLifetime time.Duration // default 10 min

	// Progress is told what is being done, in a few words, by several goroutines. Nil: nobody.
	Progress func(what string)

	// The rest says how the network is reached. Zero values mean: as any program on this host does.

	Resolve   func(ctx context.Context, host string) ([]netip.Addr, error)
	Listen    func(v6 bool) (net.PacketConn, error) // a UDP socket on a free port
	Host      func() (hostnet.Snapshot, error)
	Interface func(netip.Addr) string // the name of the interface that has an address; "" if it is not known
	LowPorts  func() bool             // whether UDP ports from 600 to 1023 may be bound
	PortMap   portmap.Config          // Changed is not used
	Dialer    relay.Dialer            // Key is set by Run
}

// Times of a run: each part ends by itself, and all of them run at once.
const (
	askTime     = 3 * time.Second        // for the first answer of a STUN server
	askGrace    = 300 * time.Millisecond // for the other servers, after that
	resolveTime = 2 * time.Second
	portMapTime = 3 * time.Second
	relayTime   = 4 * time.Second
	deleteTime  = time.Second // to delete a mapping
	familyTime  = 8 * time.Second
)

func (cfg Config) withDefaults() Config {
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.Listen == nil {
		cfg.Listen = func(v6 bool) (net.PacketConn, error) { return net.ListenPacket(network(v6), ":0") }
	}
	if cfg.Host == nil {
		cfg.Host = hostnet.Read
	}
	if cfg.Interface == nil {
		cfg.Interface = interfaceNames()
	}
	if cfg.LowPorts == nil {
		cfg.LowPorts = bindsLowPorts
	}
	if cfg.MaxLifetime <= 0 {
		cfg.MaxLifetime = 10 * time.Minute
	}
	return cfg
}

func network(v6 bool) string {
	if v6 {
		return "udp6"
	}
	return "udp4"
}

// bindsLowPorts tries some: one may be in use.
func bindsLowPorts() bool {
	for port := 1023; port > 1013; port-- {
		if c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port}); err == nil {
			c.Close()
			return true
		}
	}
	return false
}
