package relayd

import (
	"bytes"
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/traversal/relay/relayserver"
	"culvert.dev/culvert/traversal/stun"
	"culvert.dev/culvert/traversal/wgstun"
)

// Status is what a relay tells of itself: the document of "culvert relay status --json". Names and meaning of its fields stay;
// fields may be added. It is a snapshot that refers to nothing of the relay.
type Status struct {
	Name        string            `json:"name"`
	Version     string            `json:"version"`
	UptimeS     int64             `json:"uptime_s"`
	PublicKey   wgkey.Public      `json:"public_key"` // of the relay itself, as its protocol shows it
	Listen      []netip.AddrPort  `json:"listen"`
	Offer       Offer             `json:"offer"`
	Certificate CertificateStatus `json:"certificate"`
	Open        bool              `json:"open"`                  // every key is admitted
	Allowed     int               `json:"allowed"`               // keys
	AllowError  string            `json:"allow_error,omitempty"` // why the allow file is not heeded
	Limits      LimitStatus       `json:"limits"`
	Clients     []ClientStatus    `json:"clients"` // the most traffic first
	Traffic     TrafficStatus     `json:"traffic"`
	Refused     map[string]uint64 `json:"refused"`          // connections by reason
	Ended       map[string]uint64 `json:"ended"`            // clients that the relay disconnected, by reason
	Dropped     map[string]uint64 `json:"dropped"`          // packets by reason
	STUN        *STUNStatus       `json:"stun,omitempty"`   // absent: off
	WGSTUN      *WGSTUNStatus     `json:"wgstun,omitempty"` // absent: off
}

// CertificateStatus is about the certificate that a client gets who names no server.
type CertificateStatus struct {
	Source  string    `json:"source"` // files, acme, self-signed, or off: plain HTTP behind a proxy
	Names   []string  `json:"names"`
	Expires time.Time `json:"expires,omitzero"`
	Pin     string    `json:"pin,omitempty"`
	Problem string    `json:"problem,omitempty"` // why there is none
}

// LimitStatus is what clients are held to.
type LimitStatus struct {
	RateBits      int64 `json:"rate_bit_s,omitempty"` // that each client may send; absent: no limit
	MaxClients    int   `json:"max_clients"`
	MaxPerAddress int   `json:"max_per_address"`
}

// ClientStatus is one connection of a client. Rx is what came from it, Tx what was sent to it.
type ClientStatus struct {
	Key           wgkey.Public `json:"public_key"`
	Name          string       `json:"name,omitempty"` // as the allow list has it
	Address       netip.Addr   `json:"address"`
	Active        bool         `json:"active"` // packets for the key go to this connection; another one has them otherwise
	Transport     string       `json:"transport"`
	Since         time.Time    `json:"since"`
	RxBytes       uint64       `json:"rx_bytes"`
	RxPackets     uint64       `json:"rx_packets"`
	TxBytes       uint64       `json:"tx_bytes"`
	TxPackets     uint64       `json:"tx_packets"`
	QueuedBytes   int          `json:"queued_bytes"` // that wait for it
	QueuedPackets int          `json:"queued_packets"`
	Dropped       uint64       `json:"dropped"` // packets to it
}

// TrafficStatus counts since the relay started, but for QueuedBytes, which is now. Rx is what came from clients, Tx what was sent to
// them; packets are those of nodes, bytes those of all frames.
type TrafficStatus struct {
	Accepted    uint64 `json:"accepted"` // connections
	RxBytes     uint64 `json:"rx_bytes"`
	RxPackets   uint64 `json:"rx_packets"`
	TxBytes     uint64 `json:"tx_bytes"`
	TxPackets   uint64 `json:"tx_packets"`
	Delayed     uint64 `json:"delayed"` // times that a client was held to its rate
	QueuedBytes int64  `json:"queued_bytes"`
}

// STUNStatus counts the messages of the STUN server.
type STUNStatus struct {
	Listen   []netip.AddrPort  `json:"listen"`
	Answered uint64            `json:"answered"`
	Errors   uint64            `json:"errors"` // answered with an error
	Dropped  map[string]uint64 `json:"dropped"`
	TxBytes  uint64            `json:"tx_bytes"`
}

// WGSTUNStatus counts what came to the WG-STUN server through its tunnels.
type WGSTUNStatus struct {
	Port     uint16            `json:"port"`
	Clients  int               `json:"clients"`          // keys that WireGuard knows
	Refused  uint64            `json:"refused"`          // keys of connected clients for whom there was no room
	Answered uint64            `json:"answered"`         // requests of STUN
	Echoes   uint64            `json:"echoes"`           // pings, answered too
	Dropped  map[string]uint64 `json:"dropped"`          // everything else
	Static   []StaticClient    `json:"static,omitempty"` // those with addresses of their own
}

// StaticClient is a client that the configuration gives an address.
type StaticClient struct {
	PublicKey wgkey.Public `json:"public_key"`
	Address   netip.Addr   `json:"address"`
}

// AddressesOf returns the addresses that a client has to have inside the tunnel.
func (w *WGSTUNStatus) AddressesOf(key wgkey.Public) []netip.Addr {
	list := []netip.Addr{wgstun.AddressOf(key)}
	for _, c := range w.Static {
		if c.PublicKey == key && c.Address != list[0] {
			list = append(list, c.Address)
		}
	}
	return list
}

// Status tells how the relay and its clients are.
func (r *Relay) Status() Status {
	conf := r.conf.Load()
	rules := r.admission.rules.Load()
	stats := r.server.Stats()
	s := Status{
		Name: conf.Server.Name, Version: r.cfg.Version, UptimeS: int64(time.Since(r.started).Seconds()),
		PublicKey: conf.Server.Key.Private.Public(), Listen: r.addresses(), Offer: r.Offer(), Certificate: r.certificateStatus(),
		Open: rules.open, Allowed: len(rules.names),
		Limits:  LimitStatus{RateBits: int64(r.rate(conf)), MaxClients: r.limits(conf).MaxClients, MaxPerAddress: conf.Server.MaxPerAddress},
		Clients: r.clients(), Traffic: trafficOf(stats), Refused: reasons(stats.Refused), Ended: reasons(stats.Ended), Dropped: reasons(stats.Dropped),
	}
	if p := r.allowProblem.Load(); p != nil {
		s.AllowError = p.text
	}
	if r.stun != nil {
		s.STUN = stunStatus(r.stun)
	}
	if r.wgstun != nil {
		s.WGSTUN = r.wgstun.status(conf.WGSTUN.Clients)
	}
	return s
}

func (r *Relay) addresses() []netip.AddrPort {
	list := make([]netip.AddrPort, len(r.listeners))
	for i, l := range r.listeners {
		list[i] = addressOf(l)
	}
	return list
}

func (r *Relay) certificateStatus() CertificateStatus {
	if r.cert == nil {
		return CertificateStatus{Source: certNone, Names: []string{}}
	}
	c := CertificateStatus{Source: r.cert.kind(), Names: []string{}}
	leaf, err := r.cert.leaf()
	if err != nil {
		c.Problem = err.Error()
		return c
	}
	c.Names, c.Expires, c.Pin = certNames(leaf), moment(leaf.NotAfter), relay.PinOf(leaf).String()
	return c
}

// moment is a time as documents have it: UTC, to the millisecond.
func moment(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func stunStatus(server *stun.Server) *STUNStatus {
	st := server.Stats()
	s := &STUNStatus{Listen: server.Addrs(), Answered: st.Responses, Errors: st.Errors, TxBytes: st.BytesOut, Dropped: map[string]uint64{}}
	for reason, n := range map[string]uint64{
		"malformed": st.Malformed, "not-a-request": st.NotRequest, "other-method": st.OtherMethod, "bad-fingerprint": st.BadFingerprint,
		"bad-source": st.BadSource, "bad-destination": st.BadDestination, "source-rate": st.SourceRate,
		"discovery-rate": st.DiscoveryRate, "table-full": st.TableFull, "total-rate": st.TotalRate, "unsent": st.Unsent,
	} {
		if n > 0 {
			s.Dropped[reason] = n
		}
	}
	return s
}

// Health is nil when the relay is ready: it takes clients and has a certificate for them.
func (r *Relay) Health() error {
	if r.ctx.Err() != nil || r.draining.Load() {
		return errors.New("the relay is stopping")
	}
	if r.deaf.Load() {
		return errors.New("a listener has ended: restart the relay")
	}
	if p := r.allowProblem.Load(); p != nil && p.closed && !r.admission.rules.Load().open {
		return errors.New(p.text)
	}
	if r.cert == nil {
		return nil
	}
	leaf, err := r.cert.leaf()
	if err != nil {
		return err
	}
	if now := time.Now(); now.After(leaf.NotAfter) {
		return errors.New("the certificate has expired")
	}
	return nil
}

// source is the relay as the control socket sees it.
type source struct{ r *Relay }

func (s source) Status() any     { return s.r.Status() }
func (s source) Health() error   { return s.r.Health() }
func (s source) Reload() error   { return s.r.Reload() }
func (s source) Version() string { return s.r.cfg.Version }

func trafficOf(st relayserver.Stats) TrafficStatus {
	return TrafficStatus{
		Accepted: st.Accepted, Delayed: st.Delayed, QueuedBytes: st.QueuedBytes,
		RxBytes: st.BytesIn, RxPackets: st.PacketsIn, TxBytes: st.BytesOut, TxPackets: st.PacketsOut,
	}
}

// reasons gives reasons the form that all of culvert's have.
func reasons(m map[string]uint64) map[string]uint64 {
	out := make(map[string]uint64, len(m))
	for name, n := range m {
		out[strings.ReplaceAll(name, " ", "-")] = n
	}
	return out
}

func (r *Relay) clients() []ClientStatus {
	list := []ClientStatus{}
	for _, c := range r.server.Clients() {
		list = append(list, ClientStatus{
			Key: c.Key, Name: r.admission.name(c.Key), Address: c.Address, Active: c.Active, Transport: c.Transport.String(), Since: moment(c.Since),
			RxBytes: c.BytesIn, RxPackets: c.PacketsIn, TxBytes: c.BytesOut, TxPackets: c.PacketsOut,
			QueuedBytes: c.QueuedBytes, QueuedPackets: c.Queued, Dropped: c.Dropped,
		})
	}
	byTraffic(list)
	return list
}

func (s *wgServer) status(static []config.WGSTUNClient) *WGSTUNStatus {
	st := s.responder.Stats()
	w := &WGSTUNStatus{Port: s.port, Answered: st.STUN, Echoes: st.Echo, Dropped: st.Dropped}
	w.Clients, w.Refused = s.figures()
	for _, c := range static {
		if c.Address.IsValid() {
			w.Static = append(w.Static, StaticClient{c.Key, c.Address})
		}
	}
	return w
}

// byTraffic sorts those first who cost most.
func byTraffic(list []ClientStatus) {
	slices.SortFunc(list, func(a, b ClientStatus) int {
		return cmp.Or(cmp.Compare(b.RxBytes+b.TxBytes, a.RxBytes+a.TxBytes), a.Since.Compare(b.Since), bytes.Compare(a.Key[:], b.Key[:]))
	})
}
