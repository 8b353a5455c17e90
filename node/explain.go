package node

import (
	"fmt"
	"net/netip"
	"net/url"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// Explain tells what the running node would do with a flow, by its policy as it is now. An error is one of the question.
func (n *Node) Explain(q Question) (Explanation, error) {
	n.mu.Lock()
	conf, host := n.conf, n.host
	permitted := conf.FilterConfig(func(p *config.Peer) uint16 { return n.ids.ids[p.PublicKey] })
	policy := n.net.Policy()
	n.mu.Unlock()
	permitted.Host = host
	e, err := explainer{conf, permitted, policy}.answer(q)
	e.Asked = AskedNode
	return e, err
}

// ExplainConfig tells what a node with this configuration would do on this host as it is now.
func ExplainConfig(conf *config.Config, q Question) (Explanation, error) {
	var ids peerIDs
	ids.assign(conf.Peers)
	permitted := conf.FilterConfig(func(p *config.Peer) uint16 { return ids.ids[p.PublicKey] })
	var err error
	if permitted.Host, err = hostnet.Read(); err != nil {
		return Explanation{}, fmt.Errorf("read the host's networks: %w", err)
	}
	policy, err := filter.New(permitted)
	if err != nil {
		return Explanation{}, err
	}
	e, err := explainer{conf, permitted, policy}.answer(q)
	e.Asked = AskedConfiguration
	return e, err
}

// Explain is the answer to a question that comes by the control socket.
func (s source) Explain(query url.Values) (any, error) { return s.n.Explain(QuestionOf(query)) }

// explainer answers one question.
type explainer struct {
	conf      *config.Config
	permitted filter.Config // what policy is made of
	policy    *filter.Policy
}

func (x explainer) answer(q Question) (e Explanation, err error) {
	allow, supposed, err := q.suppose()
	if err != nil {
		return e, err
	}
	t, err := q.target()
	if err != nil {
		return e, err
	}
	src, _ := netip.ParseAddr(q.From)
	dst := t.addr
	if !dst.IsValid() {
		if dst, err = x.addressOf(t.name, src); err != nil {
			return e, err
		}
	}
	if err := q.checkICMP(dst.Is4()); err != nil {
		return e, err
	}
	s, err := x.sender(q.From, src, dst)
	if err != nil {
		return e, err
	}
	if supposed && src.IsValid() && !x.owns(s.id, src) {
		s = sender{addr: src} // who asks about a new peer does not mean the hub that has the whole internet
	}
	if supposed || s.id == 0 && !src.IsValid() {
		if x, err = x.supposing(&s, allow); err != nil {
			return e, err
		}
	}
	return x.judge(s, dst, t)
}

// judge has the policy decide on what s sends to dst.
func (x explainer) judge(s sender, dst netip.Addr, t target) (Explanation, error) {
	netmap, err := nat.NewNetmap(x.conf.Netmap)
	if err != nil {
		return Explanation{}, err
	}
	k := packet.Key{Src: s.addr.As16(), Dst: dst.As16(), DstPort: t.port, Proto: t.proto(dst.Is4()), V: 6}
	if dst.Is4() {
		k.V = 4
	}
	netmap.Out(&k) // policy judges where a flow really goes
	f := x.policy.Explain(s.id, &k)
	if !s.addr.IsValid() {
		f = noAddress(s.label, dst)
	}
	return x.describe(s, t, dst, k.DstAddr(), &f), nil
}

// noAddress explains the fate of packets from a peer that has no address of their family.
func noAddress(peer string, dst netip.Addr) filter.Explanation {
	family := "IPv6"
	if dst.Is4() {
		family = "IPv4"
	}
	return filter.Explanation{
		Decision: filter.Decision{Action: filter.Drop, Reason: filter.ReasonSpoofedSource},
		Steps: []filter.Step{
			{Stage: filter.StagePeer, Passed: true, Note: "from " + peer},
			{Stage: filter.StageSource, Note: fmt.Sprintf("%s has no %s address among its AllowedIPs, so that it cannot write to one", peer, family)},
		},
	}
}
