package testnet_test

import (
	"fmt"
	"net/netip"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/nat"
)

// A laptop behind a home router sends to a server, which sees the router's address. This runs in real time.
func Example() {
	n := testnet.New(testnet.Config{Seed: 1})
	inet := n.Internet()
	home := inet.Gateway("home", testnet.GatewayConfig{
		WAN: []netip.Addr{netip.MustParseAddr("203.0.113.5")},
		NAT: &testnet.NATConfig{Mapping: nat.EndpointIndependent, Filtering: nat.AddressDependent},
	})
	server := inet.Host("server", testnet.HostConfig{Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.10")}})
	laptop := home.Host("laptop", testnet.HostConfig{})

	s, err := server.ListenPacket(netip.MustParseAddrPort("198.51.100.10:3478"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	c, err := laptop.ListenPacket(netip.AddrPortFrom(netip.Addr{}, 51820))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	c.WriteToUDPAddrPort([]byte("hello"), s.LocalAddrPort())
	buf := make([]byte, 1500)
	size, from, err := s.ReadFromUDPAddrPort(buf)
	fmt.Printf("%s from %v, sent by %v %v\n", buf[:size], from, laptop.Addr(), err)
	// Output: hello from 203.0.113.5:51820, sent by 192.168.1.2 <nil>
}
