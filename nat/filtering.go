package nat

import "culvert.dev/culvert/internal/packet"

// permit says that the inside end of a mapping has sent to a remote address, for address-dependent filtering (RFC 4787
// section 5). Address-and-port-dependent filtering needs none: there, what is permitted is a flow of the table already.
type permit struct {
	m      *mapping
	remote [16]byte
}

// permittedLocked reports whether the filter of m lets packets in from a remote end, because a living flow has been there. m's
// shard is locked.
func (n *NAT) permittedLocked(m *mapping, remote *[16]byte, port uint16) bool {
	switch n.cfg.Filtering {
	case EndpointIndependent:
		return true
	case AddressDependent:
		return m.shard.permits[permit{m, *remote}] > 0
	}
	k := packet.Key{
		Src: m.key.inner, Dst: *remote, SrcPort: m.key.port, DstPort: port,
		Peer: m.key.peer, Proto: m.key.proto, V: m.key.v,
	}
	f, _ := n.table.Lookup(&k)
	if f == nil {
		return false
	}
	x := f.extra.Load()
	return x != nil && x.near == m
}

// permit notes that the opener of f, whose mapping is m, sends to the remote end of f.
func (n *NAT) permit(m *mapping, f *Flow) {
	if n.cfg.Filtering != AddressDependent {
		return
	}
	m.shard.mu.Lock()
	m.shard.permits[permit{m, nearRemote(f)}]++
	m.shard.mu.Unlock()
}

// forbidLocked takes one permit back.
func (n *NAT) forbidLocked(m *mapping, remote [16]byte) {
	if n.cfg.Filtering != AddressDependent {
		return
	}
	p := permit{m, remote}
	if m.shard.permits[p]--; m.shard.permits[p] <= 0 {
		delete(m.shard.permits, p)
	}
}

// answered notes that the inside end to which f came in through a mapping has sent something back: from now on f counts like one
// that it opened.
func (n *NAT) answered(f *Flow) {
	x := f.extra.Load()
	if x == nil || x.far == nil || x.answered.Load() {
		return
	}
	x.answered.Store(true)
	from := farRemote(f)
	n.noteAnswer(x.far, f, &from)
}

// noteAnswer counts f, which came in through m from a remote address, among those whose inside end has sent.
func (n *NAT) noteAnswer(m *mapping, f *Flow, from *[16]byte) {
	m.shard.mu.Lock()
	defer m.shard.mu.Unlock()
	if done, kept := m.in[f]; !kept || done { // not kept: nobody wants to know, or f has ended
		return
	}
	m.in[f] = true
	if n.cfg.Filtering == AddressDependent {
		m.shard.permits[permit{m, *from}]++
	}
}

// nearRemote is where the opener of f sends to, as its mapping's filter sees it.
func nearRemote(f *Flow) [16]byte {
	if x := f.extra.Load(); x.far != nil || f.Reply.V == 0 {
		return f.Key.Dst // an own external address
	}
	return f.Reply.Src
}

// farRemote is where f comes from, as the filter of the mapping it came in through sees it.
func farRemote(f *Flow) [16]byte {
	if x := f.extra.Load(); x.near != nil {
		return x.near.ext.addr
	}
	return f.Key.Src
}
