package node

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/show"
)

// Who was asked.
const (
	AskedNode          = "node"          // the running node
	AskedConfiguration = "configuration" // the file, on this host as it is now
)

// Explanation is the document of "culvert explain --json". Names and meaning of its fields stay; fields may be added.
type Explanation struct {
	Asked   string         `json:"asked"`
	File    string         `json:"file"`    // of the configuration
	Verdict string         `json:"verdict"` // accept, reject (with an answer), drop (in silence)
	Reason  string         `json:"reason"`  // as drops are counted; "none" with accept
	Why     string         `json:"why"`     // in words
	Change  string         `json:"change,omitempty"`
	From    ExplainedFrom  `json:"from"`
	To      ExplainedTo    `json:"to"`
	Via     string         `json:"via,omitempty"` // with accept, how it leaves: host, upstream
	Rule    *ExplainedRule `json:"rule,omitempty"`
	Steps   []ExplainStep  `json:"steps"`
}

// ExplainedFrom is who sends.
type ExplainedFrom struct {
	Peer     string      `json:"peer"` // "" for an address of nobody's
	Address  string      `json:"address"`
	Supposed bool        `json:"supposed,omitempty"` // its permissions, or the peer as such, are those of the question
	Allow    AllowStatus `json:"allow"`
}

// ExplainedTo is the destination.
type ExplainedTo struct {
	Address netip.Addr   `json:"address"`
	Real    *netip.Addr  `json:"real,omitempty"`   // behind [Netmap], if that translates it
	Embeds  []netip.Addr `json:"embeds,omitempty"` // IPv4 addresses in it, which are judged too
	Service string       `json:"service"`          // tcp/443, udp/53, icmp
	Where   string       `json:"where"`            // self, other-peer, lan, internet, nowhere
	Peer    string       `json:"peer,omitempty"`   // whose address it is
}

// ExplainedRule is the rule that decided.
type ExplainedRule struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Text string `json:"text"`
}

// ExplainStep is a stage that the flow passed, or where it ended.
type ExplainStep struct {
	Stage  string `json:"stage"`
	Passed bool   `json:"passed"`
	Note   string `json:"note"`
}

// Accepted reports whether the flow would pass.
func (e *Explanation) Accepted() bool { return e.Verdict == filter.Accept.String() }

// describe puts a decision into words. dst is the destination as the peer knows it, real the one that was judged.
func (x explainer) describe(s sender, t target, dst, real netip.Addr, f *filter.Explanation) Explanation {
	e := Explanation{
		File: x.conf.File, Verdict: f.Action.String(), Reason: f.Reason.String(), Via: f.Via.String(),
		From: ExplainedFrom{Peer: s.label, Supposed: s.supposed, Allow: s.allow},
		To:   ExplainedTo{Address: dst, Embeds: f.Inner, Service: t.service(), Where: f.Where.String()},
	}
	if s.addr.IsValid() {
		e.From.Address = s.addr.String()
	}
	if real != dst {
		e.To.Real = &real
	}
	if to := x.policy.Peer(f.To); to != nil && f.Where == filter.OtherPeer {
		e.To.Peer = to.Name
	}
	for _, step := range f.Steps {
		e.Steps = append(e.Steps, ExplainStep{step.Stage.String(), step.Passed, step.Note})
	}
	if f.Rule != nil {
		e.Rule = &ExplainedRule{f.Rule.File, f.Rule.Line, f.Rule.Text}
	}
	switch {
	case f.Rule != nil:
		e.Why = fmt.Sprintf("%s: %s", f.Rule.Place(), f.Rule.Text)
	case f.Action == filter.Accept:
		e.Why = "it is permitted, and no rule of [Filter] matches"
	case f.Reason == filter.ReasonUnknownPeer:
		e.Why = "no peer has the source among its AllowedIPs, so that WireGuard lets nothing in from there"
	default:
		e.Why = f.Steps[len(f.Steps)-1].Note
	}
	if f.Action != filter.Accept {
		e.Change = x.change(s, t, real, f)
	}
	return e
}

// change says what in the configuration would permit the flow, "" where nothing would.
func (x explainer) change(s sender, t target, dst netip.Addr, f *filter.Explanation) string {
	section := "in the section of " + s.label
	switch {
	case s.conf != nil:
		section = fmt.Sprintf("in the section of %s (%s)", s.label, config.Position(s.conf.File, s.conf.Line))
	case s.supposed:
		section = "for the new peer"
	}
	switch f.Reason {
	case filter.ReasonUnknownPeer:
		return "give the address to a peer: culvert peer add NAME; --allow asks what a new one could do"
	case filter.ReasonSpoofedSource:
		return "the source in AllowedIPs, " + section
	case filter.ReasonNoInbound:
		return "AllowInbound = yes " + section
	case filter.ReasonNoRouting:
		if f.Where == filter.LAN && !s.allow.LAN {
			return "AllowRouting = yes and AllowLAN = yes " + section
		}
		return "AllowRouting = yes " + section
	case filter.ReasonNoLAN:
		return "AllowLAN = yes " + section
	case filter.ReasonOtherPeer:
		if to := x.policy.Peer(f.To); to != nil && len(f.Inner) == 0 {
			return fmt.Sprintf("AllowPeers = %s %s", to.Name, section)
		}
	case filter.ReasonLinkLocal, filter.ReasonMetadata, filter.ReasonNAT64Local, filter.ReasonDeniedByConfig, filter.ReasonV4Mapped:
		return fmt.Sprintf("AllowTo = %s in [Exit], for all peers with AllowRouting", dst)
	case filter.ReasonRule:
		if len(f.Inner) > 0 { // where an address leads by another spelling, no rule permits
			return "another rule at " + f.Rule.Place()
		}
		who := s.label
		if s.conf == nil {
			who = s.addr.String()
		}
		return fmt.Sprintf("a rule before %s: Rule = accept from %s to %s %s", f.Rule.Place(), who, dst, t.service())
	}
	return ""
}

// WriteText writes the explanation for people.
func (e *Explanation) WriteText(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	switch e.Verdict {
	case filter.Accept.String():
		fmt.Fprintln(w, "accepted")
	case filter.Reject.String():
		fmt.Fprintf(w, "rejected, and the peer is told: %s\n", show.Printable(e.Reason))
	default:
		fmt.Fprintf(w, "dropped in silence: %s\n", show.Printable(e.Reason))
	}
	fmt.Fprintf(w, "from\t%s\n", show.Printable(e.fromText()))
	fmt.Fprintf(w, "to\t%s\n", show.Printable(e.toText()))
	if e.Via != "" && e.To.Where == filter.Internet.String() {
		fmt.Fprintf(w, "via\t%s\n", show.Printable(e.Via))
	}
	for _, s := range e.Steps {
		mark := "passed"
		if !s.Passed {
			mark = "denied"
		}
		fmt.Fprintf(w, "%s\t%s: %s\n", mark, show.Printable(s.Stage), show.Printable(s.Note))
	}
	if n := len(e.Steps); n == 0 || e.Steps[n-1].Note != e.Why {
		fmt.Fprintf(w, "decided by\t%s\n", show.Printable(e.Why))
	}
	switch {
	case e.Change != "":
		fmt.Fprintf(w, "to permit\t%s\n", show.Printable(e.Change))
	case !e.Accepted():
		fmt.Fprintf(w, "to permit\tnothing in the configuration would\n")
	}
	if e.Asked == AskedNode {
		fmt.Fprintf(w, "asked\tthe running node\n")
	} else {
		fmt.Fprintf(w, "asked\tthe configuration %s and this host, not a running node\n", show.Printable(cmp.Or(e.File, "of the environment")))
	}
	return w.Flush()
}

func (e *Explanation) fromText() string {
	text := e.From.Peer
	switch {
	case text == "":
		return e.From.Address + ", which is no peer's"
	case e.From.Address != "":
		text += ", " + e.From.Address
	}
	if e.From.Supposed {
		return text + ", supposed to have: " + e.From.Allow.String()
	}
	return text + ", allowed: " + e.From.Allow.String()
}

func (e *Explanation) toText() string {
	text := e.To.Address.String() + " " + e.To.Service
	if e.To.Real != nil {
		text += ", which is " + e.To.Real.String() + " by [Netmap]"
	}
	if len(e.To.Embeds) > 0 {
		var list []string
		for _, a := range e.To.Embeds {
			list = append(list, a.String())
		}
		text += ", which leads to " + strings.Join(list, " and ")
	}
	places := map[string]string{
		filter.Self.String(): ", this node itself", filter.LAN.String(): ", in a local network of this host",
		filter.Internet.String(): ", in the internet", filter.OtherPeer.String(): ", at the peer " + e.To.Peer,
	}
	return text + places[e.To.Where]
}
