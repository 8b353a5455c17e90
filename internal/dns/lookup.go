package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// otherFamilyTime is how long a lookup that has addresses of one family waits for those of the other: some resolvers never answer for
// AAAA (RFC 8305 section 3).
const otherFamilyTime = 500 * time.Millisecond

// Errors of lookups, as the Err of a net.DNSError.
const (
	msgNotFound  = "no such host"
	msgNoAddress = "no such host: the name has no such address" // but exists
	msgNotAsked  = "no such host: the name has a meaning in its own network only and is not asked for beyond it"
	msgBadName   = "not a host name"
)

// LookupNetIP returns the addresses of a host as the route's resolvers know it: those that the name or the end of its chain of aliases has
// in their answer, IPv6 before IPv4, each in their order. network is "ip" for both families, which are then asked for at the same
// time, "ip4" or "ip6". There is no search list, the last dot makes no difference, and the system's own files are not read. Addresses
// are returned as they are. IPv6 addresses that stand for IPv4 ones are left out of answers.
//
// Names that are not host names, bare names and those of no use in the world (RFC 6761) are not asked for; those below the route's
// own domain are, whatever they are. It takes about five seconds at most.
//
// Errors are of type *net.DNSError: IsNotFound if there is no such name or it has no such addresses, IsTimeout if resolvers or ctx took
// too long, IsTemporary for all that another attempt may mend. errors.Is tells whether ctx was the reason.
func (r *Route) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	types, err := typesOf(network)
	if err != nil {
		return nil, &net.DNSError{Err: err.Error(), Name: host, UnwrapErr: err}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return literal(a, network, host)
	}
	n, failure := hostName(host)
	if failure != nil {
		return nil, failure
	}
	if labels, own := n.under(r.domain); !own || labels == 0 {
		if _, local := n.under(localhost); local || n.n == 1 || isSpecial(&n) {
			return nil, notFound(host, msgNotAsked)
		}
	}
	return r.lookup(ctx, types, host)
}

func typesOf(network string) ([]dnsmessage.Type, error) {
	switch network {
	case "ip":
		return []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeA}, nil
	case "ip4":
		return []dnsmessage.Type{dnsmessage.TypeA}, nil
	case "ip6":
		return []dnsmessage.Type{dnsmessage.TypeAAAA}, nil
	}
	return nil, net.UnknownNetworkError(network)
}

func literal(a netip.Addr, network, host string) ([]netip.Addr, error) {
	if network == "ip4" && !a.Is4() || network == "ip6" && a.Is4() {
		return nil, notFound(host, "an address of the other family")
	}
	return []netip.Addr{a}, nil
}

// hostName refuses what is not the name of a host. A last label that is a number is an address that somebody has written otherwise:
// programs do not agree on which.
func hostName(host string) (n qname, failure *net.DNSError) {
	query, ok := newQuestion(host, dnsmessage.TypeA)
	if !ok {
		return n, notFound(host, msgBadName)
	}
	n = nameOf(&query)
	last, hex := strings.CutPrefix(string(n.label(n.n-1)), "0x")
	digits := "0123456789"
	if hex {
		digits += "abcdef"
	}
	if strings.Trim(last, digits) == "" {
		return n, notFound(host, msgBadName)
	}
	return n, nil
}

func notFound(host, msg string) *net.DNSError {
	return &net.DNSError{Err: msg, Name: host, IsNotFound: true}
}

// lookup asks for all types at once and joins what is found.
func (r *Route) lookup(ctx context.Context, types []dnsmessage.Type, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type found struct {
		i     int
		addrs []netip.Addr
		err   *net.DNSError
	}
	results := make(chan found, len(types))
	for i, typ := range types {
		go func() {
			addrs, err := r.lookupType(ctx, typ, host)
			results <- found{i, addrs, err}
		}()
	}
	lists := make([][]netip.Addr, len(types))
	var failure *net.DNSError
	var enough <-chan time.Time
	for range types {
		select {
		case f := <-results:
			if f.err != nil {
				failure = worse(failure, f.err)
			} else if lists[f.i] = f.addrs; enough == nil {
				enough = time.After(otherFamilyTime)
			}
		case <-enough:
			return slices.Concat(lists...), nil
		}
	}
	if all := slices.Concat(lists...); len(all) > 0 {
		return all, nil
	}
	return nil, failure
}

// worse returns the error that tells more: a name that does not exist has no addresses of the other family either, but if it merely has
// none of one, what hindered the other counts.
func worse(a, b *net.DNSError) *net.DNSError {
	switch {
	case a == nil:
		return b
	case b.Err == msgNotFound, a.IsNotFound && a.Err != msgNotFound:
		return b
	}
	return a
}

// lookupType returns at least one address, or an error.
func (r *Route) lookupType(ctx context.Context, typ dnsmessage.Type, host string) ([]netip.Addr, *net.DNSError) {
	query, ok := newQuestion(host, typ)
	if !ok {
		return nil, notFound(host, msgBadName)
	}
	a, _, err := r.resolve(ctx, r.log, &query, true, false)
	server := ""
	if a.from.IsValid() {
		server = a.from.String()
	}
	failure := &net.DNSError{Name: host, Server: server}
	if err != nil {
		var timeout net.Error
		failure.Err, failure.UnwrapErr, failure.IsTemporary = err.Error(), err, !errors.Is(err, errNoUpstream)
		failure.IsTimeout = errors.As(err, &timeout) && timeout.Timeout()
		return nil, failure
	}
	switch a.m.rcode() {
	case dnsmessage.RCodeSuccess:
	case dnsmessage.RCodeNameError:
		failure.Err, failure.IsNotFound = msgNotFound, true
		return nil, failure
	default:
		failure.Err, failure.IsTemporary = "the resolver said "+strings.TrimPrefix(a.m.rcode().String(), "RCode"), true
		return nil, failure
	}
	addrs, err := addressesIn(a.m.raw, typ)
	switch {
	case err != nil:
		failure.Err, failure.UnwrapErr, failure.IsTemporary = "malformed answer: "+err.Error(), err, true
		return nil, failure
	case len(addrs) == 0:
		failure.Err, failure.IsNotFound = msgNoAddress, true
		return nil, failure
	}
	return addrs, nil
}
