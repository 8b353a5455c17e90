package portmap

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Protocol is how a mapping was made.
type Protocol string

// The protocols, in the order in which they are preferred.
const (
	PCP    Protocol = "pcp"
	NATPMP Protocol = "nat-pmp"
	UPnP   Protocol = "upnp"
)

// Errors that a Service may have.
var (
	ErrNoAnswer    = errors.New("no answer")
	ErrUnsupported = errors.New("not supported by the gateway")
	ErrBadAddress  = errors.New("the gateway names an external address that cannot be one")
	ErrBadAnswer   = errors.New("the gateway's answer makes no sense")
)

// ResultError is a gateway's refusal. It wraps ErrUnsupported where that is what the code means.
type ResultError struct {
	Protocol Protocol
	Code     int    // PCP: RFC 6887 section 7.4; NAT-PMP: RFC 6886 section 3.5; UPnP: errorCode of the fault
	Text     string // the gateway's own words (UPnP), at most 128 bytes; may be empty

	retry time.Duration // after which PCP servers want to be asked again; 0 if they do not say
}

// Result codes of PCP that are acted upon.
const (
	pcpUnsupportedVersion = 1
	pcpNotAuthorized      = 2
	pcpUnsupportedOpcode  = 4
	pcpUnsupportedProto   = 9
	pcpCannotProvide      = 11
	pcpAddressMismatch    = 12
)

// Result codes of NAT-PMP that are acted upon.
const (
	pmpUnsupportedVersion = 1
	pmpNetworkFailure     = 3
	pmpUnsupportedOpcode  = 5
)

// Error codes of UPnP that are acted upon: of the device architecture, WANIPConnection and WANIPv6FirewallControl.
const (
	upnpInvalidAction  = 401
	upnpInvalidArgs    = 402
	upnpOptionalAction = 602
	upnpNotAuthorized  = 606
	upnpNoSuchPinhole  = 704
	upnpNoSuchMapping  = 714
	upnpConflict       = 718
	upnpSamePorts      = 724
	upnpOnlyPermanent  = 725
	upnpNoPortMapsLeft = 728
	upnpConflictOther  = 729
)

// meanings say what a code means to whoever runs the network. A code without one is shown as a number.
var meanings = map[Protocol]map[int]string{
	PCP: {
		1: "unsupported version", 2: "not authorised: the gateway refuses, or another program holds the port", 3: "malformed request",
		4: "unsupported opcode", 5: "unsupported option", 6: "malformed option", 7: "network failure: the gateway has no external address",
		8: "no resources: the gateway cannot map now, or has no public address", 9: "unsupported protocol", 10: "quota of this host is used up",
		11: "the suggested external port or address is not to be had", 12: "address mismatch: there is another NAT before the gateway",
		13: "excessive remote peers",
	},
	NATPMP: {
		1: "unsupported version", 2: "refused: port mapping is off on the gateway", 3: "network failure: the gateway has no public address",
		4: "out of resources", 5: "unsupported opcode",
	},
	UPnP: {
		401: "unknown action", 402: "invalid arguments", 501: "action failed: refused by the gateway", 602: "action not implemented",
		606: "not authorised: the gateway's settings forbid it", 701: "no pinholes left", 702: "the IPv6 firewall is off",
		703: "the IPv6 firewall admits no pinholes", 704: "no such pinhole", 714: "no such mapping", 718: "the port is another host's",
		724: "external and internal port must be the same", 725: "only permanent mappings are supported", 728: "no mappings left",
		729: "the port is taken by another mechanism", 733: "inconsistent parameters",
	},
}

func (e *ResultError) Error() string {
	text := meanings[e.Protocol][e.Code]
	if text == "" {
		text = e.Text
	}
	if text == "" {
		return fmt.Sprintf("%s result %d", e.Protocol, e.Code)
	}
	return fmt.Sprintf("%s result %d: %s", e.Protocol, e.Code, text)
}

// Is makes errors.Is find ErrUnsupported.
func (e *ResultError) Is(target error) bool {
	if target != ErrUnsupported {
		return false
	}
	switch e.Protocol {
	case PCP:
		return e.Code == pcpUnsupportedVersion || e.Code == pcpUnsupportedOpcode || e.Code == pcpUnsupportedProto
	case NATPMP:
		return e.Code == pmpUnsupportedVersion || e.Code == pmpUnsupportedOpcode
	default:
		return e.Code == upnpInvalidAction || e.Code == upnpOptionalAction
	}
}

// resultCode is the code of a refusal by a gateway, or 0.
func resultCode(err error) int {
	if r := (*ResultError)(nil); errors.As(err, &r) {
		return r.Code
	}
	return 0
}

// sharedAddresses lead to a NAT of the provider's: RFC 6598, and RFC 6333 section 5.7 (DS-Lite).
var sharedAddresses = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24")}

// doubleNAT reports whether an external address of a gateway's is one that strangers cannot reach, so that there must be
// another NAT behind it.
func doubleNAT(a netip.Addr) bool {
	for _, p := range sharedAddresses {
		if p.Contains(a) {
			return true
		}
	}
	return a.IsPrivate() || a.IsLinkLocalUnicast()
}

// plausible reports whether an address may be a gateway's external one for a mapping of local's family.
func plausible(a, local netip.Addr) bool {
	const reserved = 240 // 240.0.0.0/4, and the broadcast address in it
	return a.IsValid() && a.Zone() == "" && a.Is4() == local.Is4() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() &&
		(!a.Is4() || a.As4()[0] != 0 && a.As4()[0] < reserved)
}
