package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// stagger is the Connection Attempt Delay of RFC 8305 section 5.
const stagger = 250 * time.Millisecond

// Race connects to the first of several addresses of one host that answers (Happy Eyeballs, RFC 8305): IPv6 first, then the families in
// turn; the next attempt starts when one has failed, or after the stagger. The losers are cancelled. If all fail the error is the one
// that tells most. addrs must not be empty.
func Race(ctx context.Context, addrs []netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, error) {
	if len(addrs) == 1 {
		return dial(ctx, addrs[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	addrs = interleave(addrs)
	type result struct {
		c   net.Conn
		err error
	}
	results := make(chan result, len(addrs)) // has room for all: no attempt waits for a reader
	next := time.NewTimer(0)
	defer next.Stop()
	var failed error
	for started, ended := 0, 0; ended < len(addrs); {
		select {
		case <-next.C:
			if started == len(addrs) {
				break
			}
			to := addrs[started]
			started++
			next.Reset(stagger)
			go func() {
				c, err := dial(ctx, to)
				results <- result{c, err}
			}()
		case r := <-results:
			ended++
			if r.err == nil {
				go func(left int) { // each loser ends soon: its context has
					for range left {
						if r := <-results; r.c != nil {
							r.c.Close()
						}
					}
				}(started - ended)
				return r.c, nil
			}
			failed = telling(failed, r.err)
			next.Reset(0)
		}
	}
	return nil, failed
}

// interleave sorts addresses so that the families take turns, IPv6 first; within a family the order stays (RFC 8305 section 4).
func interleave(addrs []netip.AddrPort) []netip.AddrPort {
	var v4, v6, list []netip.AddrPort
	for _, a := range addrs {
		if a.Addr().Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	for i := range max(len(v4), len(v6)) {
		if i < len(v6) {
			list = append(list, v6[i])
		}
		if i < len(v4) {
			list = append(list, v4[i])
		}
	}
	return list
}

// telling returns the error that says more about why a host cannot be reached: what it has answered comes before silence, and silence
// before what never left this node. Of equals the first stays.
func telling(a, b error) error {
	if a == nil || rank(b) > rank(a) {
		return b
	}
	return a
}

func rank(err error) int {
	if errors.Is(err, context.Canceled) {
		return 0
	}
	switch proxy.KindOf(err) {
	case proxy.Refused:
		return 6
	case proxy.NotAllowed:
		return 5
	case proxy.Timeout:
		return 4
	case proxy.HostUnreachable:
		return 3
	case proxy.NameNotFound:
		return 2
	}
	return 1
}

// at puts a port to addresses.
func at(addrs []netip.Addr, port uint16) []netip.AddrPort {
	list := make([]netip.AddrPort, len(addrs))
	for i, a := range addrs {
		list[i] = netip.AddrPortFrom(a.Unmap(), port)
	}
	return list
}
