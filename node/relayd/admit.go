package relayd

import (
	"errors"
	"io/fs"
	"net/netip"
	"sync/atomic"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
)

// admission decides who is a client. It is safe for concurrent use; until a list is set nobody is.
type admission struct{ rules atomic.Pointer[rules] }

// rules are never changed.
type rules struct {
	open  bool
	names map[wgkey.Public]string // of the keys that are allowed
}

var (
	errNoRules    = errors.New("the allow list has not been read")
	errNotAllowed = errors.New("the key is not allowed")
)

// admit has the shape of relayserver.Config.Admit.
func (a *admission) admit(key wgkey.Public, _ netip.Addr) error {
	r := a.rules.Load()
	if r == nil {
		return errNoRules
	}
	if _, ok := r.names[key]; ok || r.open {
		return nil
	}
	return errNotAllowed
}

// admits reports whether a key may be a client.
func (a *admission) admits(key wgkey.Public) bool { return a.admit(key, netip.Addr{}) == nil }

// name returns what the allow list calls a key, "" if nothing.
func (a *admission) name(key wgkey.Public) string {
	if r := a.rules.Load(); r != nil {
		return r.names[key]
	}
	return ""
}

// set replaces the rules and reports how many keys were not allowed before, and how many are no longer.
func (a *admission) set(r *rules) (added, removed int) {
	old := a.rules.Swap(r)
	if old == nil {
		return len(r.names), 0
	}
	for key := range r.names {
		if _, had := old.names[key]; !had {
			added++
		}
	}
	for key := range old.names {
		if _, has := r.names[key]; !has {
			removed++
		}
	}
	return added, removed
}

// readRules puts the list of the configuration and that of its allow file together; a name in the configuration counts first. A
// file that is not there allows nobody. With an error there are no rules: see problemOf.
func readRules(conf *config.RelayConfig, open bool) (*rules, error) {
	s := &conf.Server
	list := s.Allow
	if s.AllowFile != "" {
		more, err := config.ParseAllowed(s.AllowFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		list = append(list[:len(list):len(list)], more...)
	}
	return rulesOf(list, open), nil
}

// rulesOf makes rules of a list. The first name of a key counts.
func rulesOf(list []config.Allowed, open bool) *rules {
	r := &rules{open: open, names: make(map[wgkey.Public]string, len(list))}
	for _, a := range list {
		if r.names[a.Key] == "" {
			r.names[a.Key] = a.Name
		}
	}
	return r
}
