package node

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

// FlowEntry is one tracked flow: the document of "culvert conntrack -L --json". Names and meaning of its fields stay; fields may
// be added.
type FlowEntry struct {
	Family    string    `json:"family"`               // "ipv4", "ipv6"
	Proto     string    `json:"proto"`                // "tcp", "udp", "icmp", "icmpv6", or a number
	State     string    `json:"state,omitempty"`      // of TCP, in netfilter's words
	TimeoutS  int64     `json:"timeout_s"`            // until it ends if nothing more comes
	Answered  bool      `json:"answered"`             // something has come back
	Assured   bool      `json:"assured"`              // the last to give way to newer flows
	Peer      string    `json:"peer"`                 // that opened it
	ReplyPeer string    `json:"reply_peer,omitempty"` // at its other end, if that is one; "upstream" for the upstream tunnel
	Original  FlowTuple `json:"original"`
	Reply     FlowTuple `json:"reply"`
	Started   Moment    `json:"started"`
	Last      Moment    `json:"last"`         // latest packet
	By        string    `json:"by,omitempty"` // "socks5": opened by the node's SOCKS5, not by packets; bytes are those of payload
}

// FlowTuple is what packets of one direction look like, and how many there were. Bytes are those of whole IP packets inside the
// tunnel.
type FlowTuple struct {
	Src     netip.Addr `json:"src"`
	Dst     netip.Addr `json:"dst"`
	SrcPort uint16     `json:"sport,omitempty"`
	DstPort uint16     `json:"dport,omitempty"`
	ICMP    *ICMPTuple `json:"icmp,omitempty"`
	Packets uint64     `json:"packets"`
	Bytes   uint64     `json:"bytes"`
}

// ICMPTuple is an echo request or reply.
type ICMPTuple struct {
	Type uint8  `json:"type"`
	Code uint8  `json:"code"`
	ID   uint16 `json:"id"`
}

// FlowNotice is one event of "culvert conntrack -E --json". The fields of FlowEntry stand beside its own.
type FlowNotice struct {
	Event string `json:"event"` // "NEW", "UPDATE", "DESTROY"; "LOST": nothing but a count
	Time  Moment `json:"time"`
	Ended string `json:"ended,omitempty"` // with DESTROY: as in the flow log
	Lost  uint64 `json:"lost,omitempty"`  // events that were dropped here because the reader was too slow
	*FlowEntry
}

// watchBuffer is how many events wait for a slow watcher.
const watchBuffer = 8192

func (n *Node) entryOf(i *netstack.FlowInfo) *FlowEntry {
	e := &FlowEntry{
		Family: "ipv" + strconv.Itoa(int(i.Key.V)), Proto: protoName(i.Key.Proto),
		TimeoutS: int64(i.Left.Round(time.Second) / time.Second), Answered: i.Answered(), Assured: i.State != nat.StateNew,
		Peer: n.names.of(i.Key.Peer), ReplyPeer: n.names.of(i.Reply.Peer),
		Original: tupleOf(&i.Key, i.Original, false), Reply: tupleOf(&i.Reply, i.Answers, true),
		Started: Moment{i.Started}, Last: Moment{i.Last},
	}
	if i.TCP != nat.TCPNone {
		e.State = i.TCP.String()
	}
	return e
}

func tupleOf(k *packet.Key, c netstack.FlowCount, reply bool) FlowTuple {
	t := FlowTuple{Src: k.SrcAddr(), Dst: k.DstAddr(), Packets: c.Packets, Bytes: c.Bytes}
	switch k.Proto {
	case packet.ProtoICMPv4:
		t.ICMP = &ICMPTuple{Type: 8, ID: k.SrcPort}
		if reply {
			t.ICMP = &ICMPTuple{Type: 0, ID: k.DstPort}
		}
	case packet.ProtoICMPv6:
		t.ICMP = &ICMPTuple{Type: 128, ID: k.SrcPort}
		if reply {
			t.ICMP = &ICMPTuple{Type: 129, ID: k.DstPort}
		}
	default:
		t.SrcPort, t.DstPort = k.SrcPort, k.DstPort
	}
	return t
}

var protoNames = map[uint8]string{
	packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp", packet.ProtoICMPv4: "icmp", packet.ProtoICMPv6: "icmpv6",
}

func protoName(p uint8) string {
	if name, ok := protoNames[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// flowNames are the peers' names by number, those of removed ones included: their flows end after them.
type flowNames struct {
	p atomic.Pointer[map[uint16]string]
}

// learn adds and renames; calls must not overlap.
func (f *flowNames) learn(ids peerIDs, peers []config.Peer) {
	m := map[uint16]string{nat.PeerUpstream: "upstream", nat.PeerSelf: "self"}
	if old := f.p.Load(); old != nil {
		m = maps.Clone(*old)
	}
	for _, p := range peers {
		m[ids.ids[p.PublicKey]] = p.Name
	}
	f.p.Store(&m)
}

func (f *flowNames) of(id uint16) string {
	if m := f.p.Load(); m != nil {
		return (*m)[id]
	}
	return ""
}

// resolve finishes the filter of a query, whose peer must be one of the configuration, or "upstream".
func (n *Node) resolve(query url.Values) (FlowQuery, error) {
	q, err := ParseFlowQuery(query)
	if err != nil || q.peer == "" {
		return q, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if q.peer == "upstream" {
		q.filter.Peer = nat.PeerUpstream
	}
	var names []string
	for _, p := range n.conf.Peers {
		names = append(names, p.Name)
		if p.Name == q.peer {
			q.filter.Peer = n.ids.ids[p.PublicKey]
		}
	}
	if q.filter.Peer == 0 {
		hint := ""
		if near := config.Nearest(q.peer, names); near != "" {
			hint = fmt.Sprintf("; did you mean %s?", near)
		}
		return q, fmt.Errorf("peer: there is no peer named %q%s", q.peer, hint)
	}
	return q, nil
}

// ListFlows returns the flows that a query chooses, as *FlowEntry, in a stable order.
func (s source) ListFlows(query url.Values) (iter.Seq[any], error) {
	q, err := s.n.resolve(query)
	if err != nil {
		return nil, err
	}
	list, exits := s.n.net.ListFlows(&q.filter), s.n.exits.flows(&q.filter)
	return func(yield func(any) bool) {
		for i := range list {
			if !yield(s.n.entryOf(&list[i])) {
				return
			}
		}
		for i := range exits {
			e := s.n.entryOf(&exits[i].FlowInfo)
			if e.By = bySOCKS; !yield(e) {
				return
			}
		}
	}, nil
}

// CountFlows returns how many flows a query chooses.
func (s source) CountFlows(query url.Values) (int, error) {
	q, err := s.n.resolve(query)
	if err != nil {
		return 0, err
	}
	return len(s.n.net.ListFlows(&q.filter)) + len(s.n.exits.flows(&q.filter)), nil
}

// FlushFlows ends the flows that a query chooses.
func (s source) FlushFlows(query url.Values) (int, error) {
	q, err := s.n.resolve(query)
	if err != nil {
		return 0, err
	}
	exits := s.n.exits.flows(&q.filter) // before the connections to the proxy that they belong to
	for _, f := range exits {
		f.flush()
	}
	count := s.n.net.FlushFlows(&q.filter) + len(exits)
	s.n.log.Info("flows ended on request", "flows", count, "filter", query.Encode())
	return count, nil
}

// WatchFlows passes on events as *FlowNotice, until ctx ends. The first call of emit has no event: it says that from now on all
// are seen.
func (s source) WatchFlows(ctx context.Context, query url.Values, emit func(event any, more bool) error) error {
	q, err := s.n.resolve(query)
	if err != nil {
		return err
	}
	w := s.n.net.WatchFlows(&q.filter, watchBuffer)
	defer w.Close()
	if err := emit(nil, false); err != nil {
		return err
	}
	for {
		e, missed, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if missed == 0 && len(q.events) > 0 && !slices.Contains(q.events, e.Kind) {
			if !w.Pending() { // what was held back for more
				err = emit(nil, false)
			}
		} else {
			err = emit(s.n.noticeOf(&e, missed), w.Pending())
		}
		if err != nil {
			return err
		}
	}
}

func (n *Node) noticeOf(e *netstack.FlowEvent, missed uint64) *FlowNotice {
	if missed > 0 {
		return &FlowNotice{Event: "LOST", Time: Moment{time.Now()}, Lost: missed}
	}
	notice := &FlowNotice{Event: e.Kind.String(), Time: Moment{e.Time}, FlowEntry: n.entryOf(&e.Flow)}
	if e.Kind == nat.EventDestroy {
		notice.Ended = ended(e)
	}
	return notice
}

// ended says how a flow came to its end.
func ended(e *netstack.FlowEvent) string {
	switch tcp := e.Flow.TCP; {
	case tcp == nat.TCPTimeWait:
		return "finished"
	case tcp == nat.TCPClose:
		return "reset"
	case e.Why == nat.Removed && (tcp == nat.TCPSynSent || tcp == nat.TCPSynRecv):
		return "failed"
	}
	switch e.Why {
	case nat.Expired:
		return "timeout"
	case nat.Removed:
		return "flushed"
	case nat.Closed:
		return "shutdown"
	}
	return e.Why.String() // "evicted", "withdrawn"
}
