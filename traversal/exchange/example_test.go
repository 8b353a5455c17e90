package exchange_test

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
)

func Example() {
	anna, _ := wgkey.NewPrivate()
	bert, _ := wgkey.NewPrivate()
	a, _ := exchange.NewSealer(anna)
	b, _ := exchange.NewSealer(bert)
	if err := errors.Join(a.SetPeers([]wgkey.Public{bert.Public()}), b.SetPeers([]wgkey.Public{anna.Public()})); err != nil {
		fmt.Println(err)
	}
	now := time.Now()

	// Anna's side; the packet goes to the relay.
	packet, err := a.Seal(nil, bert.Public(), exchange.Message{
		Kind:    exchange.KindCandidates,
		Session: exchange.NewSession(),
		Candidates: []exchange.Candidate{
			{Kind: exchange.Host, Preference: 2, WG: netip.MustParseAddrPort("192.168.1.7:51820")},
			{Kind: exchange.Reflexive, Preference: 1, WG: netip.MustParseAddrPort("203.0.113.9:51820")},
			{Kind: exchange.Host, WG: netip.MustParseAddrPort("100.64.0.7:51820")},
		},
	}, now)
	if err != nil {
		fmt.Println(err)
		return
	}

	// Bert's side; the relay says that the packet is from Anna.
	m, err := b.Open(packet, anna.Public(), now)
	if err != nil {
		fmt.Println(err)
		return
	}
	filter := exchange.Filter{Mesh: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}}
	kept, refused := filter.Select(m.Candidates)
	for _, c := range kept {
		fmt.Println(c)
	}
	fmt.Println(refused[exchange.RefuseMesh], exchange.RefuseMesh)

	_, err = b.Open(packet, anna.Public(), now)
	fmt.Println(errors.Is(err, exchange.FaultReplay))
	// Output:
	// host 192.168.1.7:51820
	// reflexive 203.0.113.9:51820
	// 1 inside the mesh
	// true
}
