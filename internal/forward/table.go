package forward

import (
	"net/netip"
	"time"
)

// table has the sessions of an engine and says which one idles longest. Its owner locks.
type table struct {
	byKey    map[key]*session
	byClient map[netip.Addr]*order
	all      order
}

// key tells sessions apart. A client that sends to two addresses of one socket has two: each is answered from the right one.
type key struct {
	l     *listener
	from  netip.AddrPort
	local netip.Addr
}

func newTable() table {
	return table{byKey: make(map[key]*session), byClient: make(map[netip.Addr]*order), all: order{which: inAll}}
}

func (t *table) len() int { return len(t.byKey) }

func (t *table) add(s *session) {
	client := s.key.from.Addr()
	own := t.byClient[client]
	if own == nil {
		own = &order{which: inClient}
		t.byClient[client] = own
	}
	t.byKey[s.key] = s
	t.all.insert(s)
	own.insert(s)
}

// remove reports whether s was there.
func (t *table) remove(s *session) bool {
	if t.byKey[s.key] != s {
		return false
	}
	client := s.key.from.Addr()
	own := t.byClient[client]
	delete(t.byKey, s.key)
	t.all.remove(s)
	own.remove(s)
	if own.len == 0 {
		delete(t.byClient, client)
	}
	return true
}

// The lists that a session is in.
const (
	inAll = iota
	inClient
	lists
)

// order is a list of sessions by their last use. Use does not touch it: a session has the time by which it was put in, and
// who asks for the oldest puts those that were used since where they belong. So the path of a datagram has no list to lock,
// and the answer is exact all the same: no session was last used before the time it has here.
type order struct {
	which       int // of session.links
	first, last *session
	len         int
}

type link struct {
	prev, next *session
	used       time.Duration // when it was put in
}

func (o *order) link(s *session) *link { return &s.links[o.which] }

// insert puts s behind all that were used no later. That is the end of the list nearly always.
func (o *order) insert(s *session) {
	used := time.Duration(s.used.Load())
	after := o.last
	for after != nil && o.link(after).used > used {
		after = o.link(after).prev
	}
	l := o.link(s)
	*l = link{prev: after, used: used}
	if after == nil {
		l.next, o.first = o.first, s
	} else {
		l.next, o.link(after).next = o.link(after).next, s
	}
	if l.next == nil {
		o.last = s
	} else {
		o.link(l.next).prev = s
	}
	o.len++
}

func (o *order) remove(s *session) {
	l := o.link(s)
	if l.prev == nil {
		o.first = l.next
	} else {
		o.link(l.prev).next = l.next
	}
	if l.next == nil {
		o.last = l.prev
	} else {
		o.link(l.next).prev = l.prev
	}
	*l = link{}
	o.len--
}

// oldest returns the session that idles longest, nil if there is none.
func (o *order) oldest() *session {
	for range o.len { // sessions in use could keep it busy for ever
		s := o.first
		if time.Duration(s.used.Load()) == o.link(s).used {
			return s
		}
		o.remove(s)
		o.insert(s)
	}
	return o.first
}
