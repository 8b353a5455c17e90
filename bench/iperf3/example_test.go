package iperf3_test

import (
	"context"
	"fmt"
	"net"

	"culvert.dev/culvert/bench/iperf3"
)

// A server and a client of this host, which sends ten blocks.
func Example() {
	listening := make(chan net.Addr, 1)
	ended := make(chan error, 1)
	server := iperf3.Server{Address: "127.0.0.1:0", OneOff: true, OnListen: func(a net.Addr) { listening <- a }}
	go func() { ended <- server.Serve(context.Background()) }()

	client := iperf3.Client{Params: iperf3.Params{Target: (<-listening).String(), Blocks: 10}}
	result, err := client.Run(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.End.SumSent.Bytes, "bytes;", <-ended)
	// Output: 1310720 bytes; <nil>
}
