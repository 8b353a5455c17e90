package stun_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"culvert.dev/culvert/traversal/stun"
)

// A client shares a UDP socket: its messages are told apart where datagrams arrive.
func Example() {
	server, err := stun.Listen(stun.ServerConfig{Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}})
	if err != nil {
		fmt.Println(err)
		return
	}
	go server.Serve()
	defer server.Close()

	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	client := stun.NewClient(func(msg []byte, to netip.AddrPort) error {
		_, err := conn.WriteToUDPAddrPort(msg, to)
		return err
	})
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if stun.Is(buf[:n]) && client.Handle(buf[:n], from) {
				continue
			}
			// what else the socket is for
		}
	}()

	answer, err := client.Bind(context.Background(), server.Addrs()[0])
	fmt.Println(answer.Mapped == conn.LocalAddr().(*net.UDPAddr).AddrPort(), err)
	// Output: true <nil>
}
