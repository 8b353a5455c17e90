package filter

import (
	"fmt"
	"net/netip"
	"strings"

	"culvert.dev/culvert/internal/packet"
)

// Stage is a part of a decision; they are passed in this order.
type Stage uint8

const (
	StagePeer        Stage = iota // row 1 of the package comment: who sends it
	StageSource                   // rows 2 and 3
	StageDestination              // what may be reached by nobody
	StagePermission               // what the peer's permissions decide
	StageRules                    // row 20
)

// String returns the lower-case name.
func (s Stage) String() string {
	switch s {
	case StagePeer:
		return "peer"
	case StageSource:
		return "source"
	case StageDestination:
		return "destination"
	case StagePermission:
		return "permission"
	}
	return "rules"
}

// Stage returns where a flow that is denied for this reason ends.
func (r Reason) Stage() Stage {
	switch r {
	case ReasonUnknownPeer:
		return StagePeer
	case ReasonSpoofedSource, ReasonBadSource:
		return StageSource
	case ReasonNoInbound, ReasonNoRouting, ReasonNoLAN, ReasonSelfPort, ReasonOtherPeer:
		return StagePermission
	case ReasonNone, ReasonRule:
		return StageRules
	}
	return StageDestination
}

// ReasonNamed returns the reason that is counted under a name.
func ReasonNamed(name string) (r Reason, ok bool) {
	for r := range reasonTexts {
		if reasonTexts[r].name == name {
			return Reason(r), true
		}
	}
	return ReasonNone, false
}

// Step tells what a stage found. All but the last one of an explanation have been passed.
type Step struct {
	Stage  Stage
	Passed bool
	Note   string // for people, without a full stop
}

// Explanation is a decision and the way to it.
type Explanation struct {
	Decision
	Steps []Step
	Inner []netip.Addr // IPv4 addresses that the destination embeds, which had to pass too
}

// Explain decides as Decide does and tells why. It is for people and takes its time.
func (p *Policy) Explain(peer uint16, k *packet.Key) Explanation {
	e := Explanation{Decision: p.Decide(peer, k)}
	last := e.Reason.Stage()
	for s := StagePeer; s <= last; s++ {
		step := Step{Stage: s, Passed: s < last || e.Action == Accept}
		if step.Passed {
			step.Note = p.passed(s, peer, k, &e.Decision)
		} else {
			step.Note = e.Reason.Explain()
		}
		e.Steps = append(e.Steps, step)
	}
	if last <= StageSource && e.Action != Accept {
		return e
	}
	if c := p.classOf(&k.Dst, k.V); c.kind == kindEmbedded {
		inner, n := innerAddrs(c.form, &k.Dst)
		for _, v4 := range inner[:n] {
			e.Inner = append(e.Inner, number{lo: uint64(v4)}.addr(true))
		}
	}
	return e
}

// passed says why a stage let a flow through.
func (p *Policy) passed(s Stage, peer uint16, k *packet.Key, d *Decision) string {
	from := p.Peer(peer)
	switch s {
	case StagePeer:
		return "from " + from.Name
	case StageSource:
		return fmt.Sprintf("%s is among its AllowedIPs", k.SrcAddr())
	case StageDestination:
		return p.place(d)
	case StagePermission:
		return p.permission(from, k, d)
	}
	if d.Rule == nil {
		return "no rule matches"
	}
	return "the first that matches accepts"
}

// place says where a destination lies.
func (p *Policy) place(d *Decision) string {
	switch d.Where {
	case Self:
		return "this node's own mesh address"
	case OtherPeer:
		if to := p.Peer(d.To); to != nil {
			return "an address of the peer " + to.Name
		}
	case LAN:
		return "in a local network of this host"
	case Internet:
		return "in the internet"
	}
	return "nowhere that peers may reach"
}

// permission names what lets the peer go there.
func (p *Policy) permission(from *Peer, k *packet.Key, d *Decision) string {
	var list []string
	switch d.Where {
	case Self:
		need, served := p.ports[port{k.Proto, k.DstPort}]
		switch {
		case !served:
			return "echo is for every peer"
		case need == NeedInbound:
			list = []string{"AllowInbound"}
		default:
			list = []string{"AllowRouting"}
		}
	case OtherPeer:
		list = []string{"AllowPeers"}
	case LAN:
		list = []string{"AllowRouting", "AllowLAN"}
	default:
		list = []string{"AllowRouting"}
	}
	return fmt.Sprintf("%s has %s", from.Name, strings.Join(list, " and "))
}
