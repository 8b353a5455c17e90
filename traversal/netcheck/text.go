package netcheck

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// AppendText appends the report as people read it, some 40 lines of at most 140 characters, and returns the longer slice.
func (r *Report) AppendText(b []byte) []byte {
	t := &text{b: b}
	t.addresses(r.Local)
	r.IPv4.append(t, "IPv4")
	r.IPv6.append(t, "IPv6")
	for i := range r.Gateways {
		r.Gateways[i].append(t)
	}
	t.relays(r.Relays)
	t.outlook(r)
	for _, n := range r.Notes {
		t.b = fmt.Appendf(t.b, "note: %s\n", n)
	}
	return t.b
}

// text collects lines of a name and what is said of it.
type text struct{ b []byte }

const nameWidth = 16

func (t *text) line(name, format string, args ...any) {
	t.b = fmt.Appendf(t.b, "%-*s %s\n", nameWidth, name, fmt.Sprintf(format, args...))
}

func (t *text) sub(name, format string, args ...any) { t.line("  "+name, format, args...) }

// addresses are shown a line for each interface.
func (t *text) addresses(list []Address) {
	var names []string
	of := map[string][]string{}
	for _, a := range list {
		if a.Scope == "link-local" {
			continue
		}
		if of[a.Interface] == nil {
			names = append(names, a.Interface)
		}
		of[a.Interface] = append(of[a.Interface], fmt.Sprintf("%s (%s)", a.Address, a.Scope))
	}
	if len(names) == 0 {
		t.line("this host", "has no address but loopback and link-local ones")
	}
	for i, name := range names {
		title := "this host"
		if i > 0 {
			title = ""
		}
		t.line(title, "%s", strings.TrimSpace(name+" "+strings.Join(of[name], ", ")))
	}
}

func (f *Family) append(t *text, name string) {
	switch {
	case !f.Address:
		t.line(name, "not available: this host has no such address beyond its own network")
		return
	case f.UDP == Unknown:
		t.line(name, "not known: no STUN server of this family was asked")
		return
	case f.UDP == No:
		t.line(name, "no UDP: no STUN server answers")
	default:
		t.line(name, "%s", f.headline())
	}
	for _, s := range f.Servers {
		if s.Err != "" {
			t.sub("STUN server", "%s (%s): %s", s.Name, s.Address.Addr(), s.Err)
		} else {
			t.sub("STUN server", "%s (%s) answers in %s", s.Name, s.Address.Addr(), ms(s.RTT))
		}
	}
	if f.Hints.Known {
		f.behaviour(t)
	}
	if f.Kind != KindUnknown {
		t.sub("so this is", "%s%s", f.Kind, unsure(f.Sure))
	}
}

func unsure(sure bool) string {
	if sure {
		return ""
	}
	return ", probably"
}

func (f *Family) headline() string {
	switch {
	case f.NAT == Unknown:
		return "seen from outside as " + f.Endpoint.Addr().String()
	case f.NAT == No:
		return "no NAT: seen from outside as " + f.Endpoint.Addr().String() + ", which is this host's own address"
	case f.DoubleNAT == Yes:
		return "behind more than one NAT, seen from outside as " + f.Endpoint.Addr().String()
	}
	return "behind NAT, seen from outside as " + f.Endpoint.Addr().String()
}

// meanings put the terms of RFC 4787 into words.
var (
	mappingMeans = map[string]string{
		"endpoint-independent":       "all destinations see the same outer port",
		"address-dependent":          "each address that is written to sees another outer port",
		"address-and-port-dependent": "each address and port that is written to sees another outer port",
	}
	filteringMeans = map[string]string{
		"endpoint-independent":       "anybody may send to the outer port once it is in use",
		"address-dependent":          "an address that was written to may answer from any port",
		"address-and-port-dependent": "only the address and port that was written to may answer",
	}
)

func (f *Family) behaviour(t *text) {
	if f.NAT == Yes {
		t.sub("mapping", "%s", explained(f.Mapping, mappingMeans))
	}
	t.sub("filtering", "%s", explained(f.Filtering, filteringMeans))
	if f.NAT == Yes {
		f.translation(t)
	}
	f.lifetime(t)
}

// translation is what only a NAT has.
func (f *Family) translation(t *text) {
	p := f.Ports
	switch {
	case p.Sockets == 0:
	case p.Kept == p.Sockets:
		t.sub("ports", "kept: the outer port is the inner one (%d of %d)", p.Kept, p.Sockets)
	case p.Step != 0:
		t.sub("ports", "one after the other, in steps of %d (from %d to %d)", p.Step, p.Min, p.Max)
	default:
		t.sub("ports", "%d of %d kept; from %d to %d", p.Kept, p.Sockets, p.Min, p.Max)
	}
	if f.Traditional {
		t.sub("", "\"traditional\": a static Endpoint and hole punching without any server work")
	}
	switch f.Hairpin {
	case No:
		t.sub("hairpin", "no: two nodes behind this NAT do not reach each other by its outer address")
	case Yes:
		t.sub("hairpin", "yes: two nodes behind this NAT reach each other by its outer address")
	default:
		t.sub("hairpin", "%s", f.Hairpin)
	}
	switch f.DoubleNAT {
	case Yes:
		t.sub("NATs", "more than one: %s", f.DoubleNATWhy)
	case No:
		t.sub("NATs", "one: %s", f.DoubleNATWhy)
	default:
		t.sub("NATs", "one or more: no gateway tells its outer address")
	}
}

func explained(behaviour string, means map[string]string) string {
	if words, ok := means[behaviour]; ok {
		return words + " (" + behaviour + ")"
	}
	return behaviour
}

func (f *Family) lifetime(t *text) {
	l := f.Live
	if l == nil {
		return
	}
	why := ""
	if l.Err != "" {
		why = " (" + l.Err + ")"
	}
	switch {
	case l.Least == 0 && l.Most == 0:
		t.sub("lifetime", "not known%s", why)
	case l.Most == 0:
		t.sub("lifetime", "an idle mapping lives %s or longer%s", secs(l.Least), why)
	default:
		t.sub("lifetime", "an idle mapping lives from %s to %s: PersistentKeepalive must be below that%s", secs(l.Least), secs(l.Most), why)
	}
}

func secs(s float64) string { return time.Duration(s * float64(time.Second)).String() }

// ms has three digits that count.
func ms(v float64) string {
	digits := 1
	switch {
	case v >= 100:
		digits = 0
	case v < 1:
		digits = 2
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " ms"
}

func (g *Gateway) append(t *text) {
	on := ""
	if g.Interface != "" {
		on = " on " + g.Interface
	}
	switch {
	case g.Grant == nil:
		t.line("gateway", "%s%s grants no port mapping", g.Address, on)
	case !g.Grant.Usable:
		t.line("gateway", "%s%s grants %s by %s, an address that is not on the internet", g.Address, on, g.Grant.External, g.Grant.Protocol)
	default:
		t.line("gateway", "%s%s grants %s by %s: peers reach this host there", g.Address, on, g.Grant.External, g.Grant.Protocol)
	}
	for _, s := range g.Services {
		switch {
		case s.Err != "":
			t.sub(s.Protocol, "%s", s.Err)
		default:
			t.sub(s.Protocol, "answers in %s%s", ms(s.RTT), strings.TrimSuffix(" "+s.Detail, " "))
		}
	}
}

func (t *text) relays(list []Relay) {
	for i, x := range list {
		name := "relays"
		if i > 0 {
			name = ""
		}
		switch {
		case x.FromNode && x.Connected:
			t.line(name, "%s is connected to the running node, round trip %s", x.URL, ms(x.RTT))
		case x.FromNode:
			t.line(name, "%s is not connected to the running node: %s", x.URL, x.Err)
		case x.Connected:
			by := ""
			if x.Proxy != "" {
				by = ", through " + x.Proxy
			}
			t.line(name, "%s is reached, round trip %s%s", x.URL, ms(x.RTT), by)
		case x.Refused && x.Throwaway:
			t.line(name, "%s is reached, but does not admit the key that was made for this test; with a configuration its key is used", x.URL)
		case x.Refused:
			t.line(name, "%s is reached, but does not admit this node's key", x.URL)
		default:
			t.line(name, "%s is not reached: %s", x.URL, x.Err)
		}
	}
}

// outlook tells what it means, by the kind of the other side.
func (t *text) outlook(r *Report) {
	for _, f := range []struct {
		name string
		of   *Family
	}{{"IPv4", &r.IPv4}, {"IPv6", &r.IPv6}} {
		if !f.of.Address || len(f.of.Outlook) == 0 {
			continue
		}
		if f.of.Kind == KindBlocked {
			t.b = fmt.Appendf(t.b, "\nNo peer will be reached directly over %s: all stay connected through a relay.\n", f.name)
			continue
		}
		t.b = fmt.Appendf(t.b, "\nPeers will be reached over %s, by what they are behind:\n", f.name)
		for _, o := range f.of.Outlook {
			t.b = fmt.Appendf(t.b, "  %-22s %-24s %s\n", string(o.Peer), string(o.Result), o.Result.Explain())
		}
	}
	t.b = append(t.b, '\n')
}
