package testnet

import (
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// FirewallConfig configures a stateful firewall that translates nothing.
type FirewallConfig struct {
	// Filtering says which packets from outside may reach an inside address and port that has sent something itself:
	// all (a pinhole), those from an address that it has sent to, or from an address and port that it has.
	Filtering   nat.Dependence
	Timeout     time.Duration // without a packet from inside, for UDP and ICMP; default 120 s
	Established time.Duration // the same for TCP; default 2 h 4 min
}

// firewall is the Forwarder of it.
type firewall struct {
	cfg   FirewallConfig
	open  map[packet.Key]int64 // until when, by the key of packets from outside, cut to what Filtering looks at
	swept int64
}

func newFirewall(cfg FirewallConfig) *firewall {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 120 * time.Second
	}
	if cfg.Established <= 0 {
		cfg.Established = 7440 * time.Second
	}
	return &firewall{cfg: cfg, open: map[packet.Key]int64{}}
}

// entry is the part of an inbound packet's key that must match.
func (f *firewall) entry(inbound packet.Key) packet.Key {
	inbound.Peer = 0
	switch f.cfg.Filtering {
	case nat.EndpointIndependent:
		inbound.Src, inbound.SrcPort = netip.IPv6Unspecified().As16(), 0
	case nat.AddressDependent:
		inbound.SrcPort = 0
	}
	return inbound
}

func (f *firewall) Outbound(p *packet.Packet, now int64) Verdict {
	f.sweep(now)
	if _, isError := packet.Quoted(p); isError {
		return Pass
	}
	keep := f.cfg.Timeout
	if p.Proto == packet.ProtoTCP {
		keep = f.cfg.Established
	}
	f.open[f.entry(p.Key.Reverse())] = now + int64(keep)
	return Pass
}

func (f *firewall) Inbound(p *packet.Packet, now int64) Verdict {
	k := p.Key
	if quoted, isError := packet.Quoted(p); isError {
		k = quoted.Reverse()
	}
	if f.open[f.entry(k)] > now {
		return Pass
	}
	return Drop
}

// sweep forgets what is over, now and then.
func (f *firewall) sweep(now int64) {
	if now-f.swept < int64(f.cfg.Timeout) {
		return
	}
	f.swept = now
	for k, until := range f.open {
		if until <= now {
			delete(f.open, k)
		}
	}
}
