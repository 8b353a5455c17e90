package node

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/packet"
)

// Question asks what would become of a flow.
type Question struct {
	From  string // a peer's name, an address, or "new" for a peer that does not exist yet
	To    string // ADDRESS or NAME of a peer, of this node or "self", with [:PORT] and [/PROTO]
	Allow string // permissions to suppose for From: "none", or some of inbound,routing,lan; "" for those it has
	ICMP  string // an ICMP type; makes it an echo request, as a To without a port is
}

// Values is the question as a query of the control socket.
func (q Question) Values() url.Values {
	return url.Values{"from": {q.From}, "to": {q.To}, "allow": {q.Allow}, "icmp": {q.ICMP}}
}

// QuestionOf is the inverse of Values.
func QuestionOf(v url.Values) Question {
	return Question{From: v.Get("from"), To: v.Get("to"), Allow: v.Get("allow"), ICMP: v.Get("icmp")}
}

// suppose reads Allow; ok is false where nothing is supposed.
func (q Question) suppose() (a AllowStatus, ok bool, err error) {
	allow, err := config.ParseAllow(q.Allow)
	if err != nil {
		return a, false, fmt.Errorf("allow: %w", err)
	}
	return AllowStatus(allow), q.Allow != "", nil
}

// target is what Question.To says.
type target struct {
	addr netip.Addr // invalid where a name is given
	name string     // in lower case
	port uint16     // 0: an echo request
	tcp  bool       // with a port: TCP, else UDP
}

// proto returns the IP protocol of a packet to an address of the target's.
func (t target) proto(v4 bool) uint8 {
	switch {
	case t.port == 0 && v4:
		return packet.ProtoICMPv4
	case t.port == 0:
		return packet.ProtoICMPv6
	case t.tcp:
		return packet.ProtoTCP
	}
	return packet.ProtoUDP
}

// service returns the protocol, and the port if there is one, in the words of a rule.
func (t target) service() string {
	switch {
	case t.port == 0:
		return "icmp"
	case t.tcp:
		return fmt.Sprintf("tcp/%d", t.port)
	}
	return fmt.Sprintf("udp/%d", t.port)
}

// target reads To and ICMP.
func (q Question) target() (t target, err error) {
	rest, proto, hasProto := strings.Cut(q.To, "/")
	host, port, err := splitPort(rest)
	if err != nil {
		return t, fmt.Errorf("to %q: %w", q.To, err)
	}
	if t.addr, err = netip.ParseAddr(host); err != nil {
		t.name = strings.ToLower(host)
	}
	switch {
	case t.addr.Zone() != "":
		return t, fmt.Errorf("to %q: an address in the mesh has no zone", q.To)
	case host == "":
		return t, fmt.Errorf("to %q: an address or the name of a peer is missing", q.To)
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return t, fmt.Errorf("to %q: %q is not a port (1 to 65535)", q.To, port)
		}
		t.port = uint16(n)
	}
	switch proto = strings.ToLower(proto); {
	case proto == "tcp" || !hasProto:
		t.tcp = true
	case proto != "udp" && proto != "icmp":
		return t, fmt.Errorf("to %q: %q is not a protocol that an exit carries: want tcp, udp or icmp behind the /, and one address before it", q.To, proto)
	}
	switch {
	case t.port == 0 && (proto == "tcp" || proto == "udp"):
		return t, fmt.Errorf("to %q: a port is missing, as in %s:443/%s", q.To, rest, proto)
	case t.port != 0 && (proto == "icmp" || q.ICMP != ""):
		return t, fmt.Errorf("to %q: icmp has no ports", q.To)
	}
	return t, nil
}

// splitPort takes "HOST", "HOST:PORT", "[V6]:PORT", "[V6]" and a bare IPv6 address apart.
func splitPort(s string) (host, port string, err error) {
	if rest, bracket := strings.CutPrefix(s, "["); bracket {
		host, port, closed := strings.Cut(rest, "]")
		port, hasPort := strings.CutPrefix(port, ":")
		if !closed || (port == "") == hasPort {
			return "", "", fmt.Errorf("want an IPv6 address in brackets, as in [2001:db8::1]:443")
		}
		return host, port, nil
	}
	if strings.Count(s, ":") != 1 {
		return s, "", nil
	}
	host, port, _ = strings.Cut(s, ":")
	if port == "" {
		return "", "", fmt.Errorf("the port is missing behind the colon")
	}
	return host, port, nil
}

// checkICMP refuses types that open no flow; v4 is the family of the destination.
func (q Question) checkICMP(v4 bool) error {
	number, family := "128", "IPv6"
	if v4 {
		number, family = "8", "IPv4"
	}
	switch strings.ToLower(q.ICMP) {
	case "", "echo-request", number:
		return nil
	case "8", "128":
		return fmt.Errorf("icmp type %s: an echo request has type %s in %s", q.ICMP, number, family)
	}
	return fmt.Errorf("icmp type %q: echo-request alone opens a flow; replies and errors belong to one, and no other type passes at all", q.ICMP)
}
