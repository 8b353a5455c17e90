package node

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/gather"
)

// OuterStatus is what one source says of where the node's WireGuard socket is seen from outside.
type OuterStatus struct {
	Source   string         `json:"source"`          // "stun HOST:PORT" or "wg-stun"
	Endpoint netip.AddrPort `json:"endpoint"`        // "" when it is not known now
	RTT      Millis         `json:"rtt_ms"`          // to the server; null when it is not known
	Since    Moment         `json:"since"`           // when Endpoint became this, or was lost; null when it never was known
	Checked  Moment         `json:"checked"`         // when the server was asked last; null before the first time
	Err      string         `json:"error,omitempty"` // why Endpoint is not known
}

// outerConfig is what an outer works with. The first four are required.
type outerConfig struct {
	key    wgkey.Public // the node's
	addrs  []netip.Addr // the node's own, in the mesh
	socket sideSocket
	mesh   serviceMesh

	base gather.Config // the rest of what the Gatherer needs: Send, Port and Logger of it are not used
	log  *slog.Logger  // nil: discard
}

// sideSocket sends and receives beside WireGuard on its socket, and on helper sockets; tunnel.Tunnel does.
type sideSocket interface {
	SetSide(fn func(msg []byte, socket uint32, from netip.AddrPort))
	SendFrom(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error
	ListenPort() uint16
}

// serviceMesh exchanges whole packets with a peer past the pipeline; netstack.Net does.
type serviceMesh interface {
	SetTap(peer uint16, fn func(packet []byte), from ...netip.Addr)
	Inject(peer uint16, packet []byte) error
}

// outer learns where the node may be reached: it brings the Gatherer together with the WireGuard socket and with the WG-STUN server's
// tunnel.
type outer struct {
	outerConfig
	gather *gather.Gatherer
	rest   atomic.Pointer[sideFunc] // gets what arrives beside WireGuard and is not the Gatherer's; nil: nobody

	mu      sync.Mutex // guards the following
	service *service   // nil: none
}

type sideFunc func(msg []byte, socket uint32, from netip.AddrPort)

func newOuter(cfg outerConfig) *outer {
	cfg.log = cmp.Or(cfg.log, slog.New(slog.DiscardHandler))
	cfg.base.Send = func(socket uint32, msg []byte, to netip.AddrPort) error {
		return cfg.socket.SendFrom(socket, msg, to, 0)
	}
	cfg.base.Port, cfg.base.Logger = cfg.socket.ListenPort, cfg.log
	return &outer{outerConfig: cfg, gather: gather.New(cfg.base)}
}

// setServers replaces the servers; what is known from those that stay is kept. w is nil for no WG-STUN server; its peer must be in
// the tunnel (servicePeers) for it to answer.
func (o *outer) setServers(servers []string, w *config.WGSTUN) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case w == nil:
		o.service = nil
		o.mesh.SetTap(nat.PeerService, nil)
		o.gather.SetServers(servers, nil)
		return
	case o.service == nil || !reflect.DeepEqual(o.service.conf, *w):
		o.service = o.newService(w)
	}
	o.mesh.SetTap(nat.PeerService, o.service.receive, w.Addresses...)
	o.gather.SetServers(servers, &o.service.source)
}

// networkChanged has every server asked now: the node may be behind another NAT.
func (o *outer) networkChanged() { o.gather.Network() }

// run gathers until ctx ends. The tunnel must have been started.
func (o *outer) run(ctx context.Context) {
	o.socket.SetSide(o.receive)
	defer o.socket.SetSide(nil)
	o.gather.Run(ctx)
}

// receive takes what arrives beside WireGuard.
func (o *outer) receive(msg []byte, socket uint32, from netip.AddrPort) {
	if o.gather.Handle(msg, socket, from) {
		return
	}
	if fn := o.rest.Load(); fn != nil {
		(*fn)(msg, socket, from)
	}
}

// status returns what is known, in the order of the configuration.
func (o *outer) status() (all []OuterStatus) {
	for _, s := range o.gather.Status() {
		line := OuterStatus{Source: s.Source, Endpoint: s.Endpoint, RTT: Millis(s.RTT), Since: Moment{s.Since}, Checked: Moment{s.Checked}}
		if s.Err != nil {
			line.Err = s.Err.Error()
		}
		all = append(all, line)
	}
	return all
}
