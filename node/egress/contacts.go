package egress

import (
	"net/netip"
	"sync"
)

// maxContacts is how many hosts a socket remembers.
const maxContacts = 1024

// contacts are the hosts that a socket of the host has sent to. No other gets through (address-dependent filtering, RFC 4787 section 5,
// REQ-8). When there are too many one that is no newcomer is forgotten.
type contacts struct {
	mu    sync.RWMutex // guards the following
	hosts map[netip.Addr]struct{}
}

func newContacts() *contacts { return &contacts{hosts: map[netip.Addr]struct{}{}} }

func (c *contacts) has(a netip.Addr) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	_, ok := c.hosts[a.WithZone("")]
	return ok
}

func (c *contacts) add(a netip.Addr) {
	if c.has(a) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.hosts) >= maxContacts {
		for old := range c.hosts {
			delete(c.hosts, old)
			break
		}
	}
	c.hosts[a] = struct{}{}
}
