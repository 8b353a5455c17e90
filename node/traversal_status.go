package node

import (
	"fmt"
	"io"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/show"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
)

// TraversalStatus is the search for a direct path to a peer.
type TraversalStatus struct {
	Phase       string      `json:"phase"`               // "waiting", "checking", "punching", "trial", "direct", "relayed"; "off": not begun yet
	Mode        string      `json:"mode"`                // which way packets go: "relay", "route", or "both" while a path is tried or in doubt
	Local       string      `json:"local,omitempty"`     // what the path's end here is: "host", "reflexive", "mapped", "static", "own-port", "peer-reflexive", "last-pair"
	Remote      string      `json:"remote,omitempty"`    // likewise of the peer
	Technique   string      `json:"technique,omitempty"` // that found the path: "plain", "prediction", "low ports", "sweep", "birthday"
	Socket      uint32      `json:"socket"`              // 0: the WireGuard port; others were opened for a hard NAT
	RTT         Millis      `json:"rtt_ms"`              // of the path, by checks
	Since       Moment      `json:"since"`               // of the phase
	DirectAfter Millis      `json:"direct_after_ms"`     // from the start to the first direct path; null: there was none
	Pairs       int         `json:"pairs"`               // of a socket here and an endpoint there that are known
	Valid       int         `json:"valid"`               // of these answered
	Upgrades    int         `json:"upgrades"`
	Fallbacks   int         `json:"fallbacks"`
	Checks      uint64      `json:"checks"` // sent
	Bans        []BanStatus `json:"bans,omitempty"`
	NextTry     Moment      `json:"next_try"` // null: none is planned
}

// BanStatus is a path that failed under WireGuard and is not used for a while.
type BanStatus struct {
	Endpoint netip.AddrPort `json:"endpoint"`
	Until    Moment         `json:"until"`
	Reason   string         `json:"reason"`
}

func traversalStatus(s agent.PeerStatus) *TraversalStatus {
	st := &TraversalStatus{
		Phase: s.Phase.String(), Mode: s.Mode.String(), Technique: s.Technique, Socket: s.Route.Socket, RTT: Millis(s.RTT), Since: Moment{s.Since},
		DirectAfter: Millis(s.DirectAfter), Pairs: s.Pairs, Valid: s.Valid, Upgrades: s.Upgrades, Fallbacks: s.Fallbacks, Checks: s.Checks,
		NextTry: Moment{s.NextTry},
	}
	if s.Mode != path.ModeRelay {
		st.Local, st.Remote = s.Local.String(), s.Remote.String()
	}
	for _, b := range s.Bans {
		st.Bans = append(st.Bans, BanStatus{Endpoint: b.Route.WG, Until: Moment{b.Until}, Reason: b.Reason})
	}
	return st
}

// soughtReason says why the path to a peer is as it is, where a direct one is sought. The reason is otherwise that of WireGuard
// and the relays alone.
func soughtReason(p PathStatus, s agent.PeerStatus, configured string, now time.Time) string {
	switch {
	case s.ClockAhead != 0 && s.Mode == path.ModeRelay:
		return fmt.Sprintf("the peer's clock is %s: set both clocks right, direct paths need them to agree within %s",
			aheadOf(s.ClockAhead), show.Span(exchange.MaxSkew))
	case p.Kind == PathDirect && s.Mode != path.ModeRelay:
		return "direct path found"
	case p.Kind == PathRelay && s.Reason != path.ReasonOff && configured != "":
		return fmt.Sprintf("its endpoint %s does not answer by UDP; %s", configured, s.Why(now))
	case p.Kind == PathRelay && s.Reason != path.ReasonOff:
		return s.Why(now)
	}
	return p.Reason
}

func aheadOf(d time.Duration) string {
	if d < 0 {
		return show.Span(-d) + " behind ours"
	}
	return show.Span(d) + " ahead of ours"
}

// line tells of the path that was found; "" if there is nothing to add to the path's reason.
func (s *TraversalStatus) line(now time.Time) string {
	if s == nil || s.Mode == path.ModeRelay.String() {
		return ""
	}
	text := fmt.Sprintf(", %s to %s", s.Local, s.Remote)
	if s.Technique != "" && s.Technique != "plain" {
		text += ", by " + s.Technique
	}
	if s.Mode == path.ModeBoth.String() {
		text += ", on trial or in doubt: packets go by the relay too"
	}
	if s.DirectAfter > 0 {
		text += fmt.Sprintf("; the first one took %.1f s", time.Duration(s.DirectAfter).Seconds())
	}
	for _, b := range s.Bans {
		text += fmt.Sprintf("; %v is banned for %s (%s)", b.Endpoint, show.Span(b.Until.Sub(now)), b.Reason)
	}
	return show.Printable(text)
}

// CandidateStatus is an endpoint by which peers are told to try this node.
type CandidateStatus struct {
	Kind     string         `json:"kind"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Source   string         `json:"source"` // "interface", "configuration", "stun HOST:PORT", "pcp ADDR", …
	Since    Moment         `json:"since"`
}

// MappingStatus is a port mapping that a gateway has granted.
type MappingStatus struct {
	Gateway   netip.Addr     `json:"gateway"`
	Protocol  string         `json:"protocol"` // "pcp", "nat-pmp", "upnp"
	External  netip.AddrPort `json:"external"`
	Lifetime  int64          `json:"lifetime_s"` // 0: for ever
	Renews    Moment         `json:"renews"`
	DoubleNAT bool           `json:"double_nat"` // External is not on the internet: there is another NAT beyond
}

func (n *Node) candidateStatus() (list []CandidateStatus) {
	for _, f := range n.outer.gather.Candidates() {
		list = append(list, CandidateStatus{Kind: f.Kind.String(), Endpoint: f.WG, Source: f.Source, Since: Moment{f.Since}})
	}
	return list
}

func (n *Node) mappingStatus() (list []MappingStatus) {
	for _, m := range n.outer.gather.PortMapping().Mappings {
		list = append(list, MappingStatus{
			Gateway: m.Gateway, Protocol: string(m.Protocol), External: m.External, Lifetime: int64(m.Lifetime.Seconds()), Renews: Moment{m.Renews}, DoubleNAT: m.DoubleNAT,
		})
	}
	return list
}

func (s Status) writeCandidates(t io.Writer, now time.Time) {
	if len(s.Candidates) == 0 {
		return
	}
	fmt.Fprintln(t, "\nCANDIDATE\tKIND\tFROM\tSINCE")
	for _, c := range s.Candidates {
		fmt.Fprintf(t, "%v\t%s\t%s\t%s\n", c.Endpoint, show.Printable(c.Kind), show.Printable(c.Source), age(c.Since, now))
	}
	for _, m := range s.Mappings {
		if m.DoubleNAT {
			fmt.Fprintf(t, "\nport mapping\t%v by %s is behind another NAT: it serves peers behind the same one only\n", m.External, show.Printable(m.Protocol))
		}
	}
}
