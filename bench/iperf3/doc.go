// Package iperf3 speaks the protocol of iperf3, as of version 3.12: a client and a server that measure TCP and UDP throughput, with
// stock iperf3 at the other end or with each other.
//
// It is not a program and prints nothing by itself. It knows neither the mesh nor the host: a Network gives it connections, Host
// being the host's own. SCTP, authentication, CPU affinity, zero copy and files as a source are not supported.
//
// A test is a TCP control connection and one connection per stream and direction. The client sends a cookie of 37 bytes on each
// of them, so that the server can tell whose it is. The control connection then carries states of one byte, and JSON with a length of
// four bytes, big endian, ahead of it:
//
//	client                          server
//	cookie                   ->
//	                         <-     PARAM_EXCHANGE
//	parameters (JSON)        ->
//	                         <-     CREATE_STREAMS, or SERVER_ERROR and two numbers
//	streams, one by one      ->
//	                         <-     TEST_START, TEST_RUNNING
//	... streams carry data; CLIENT_TERMINATE or SERVER_TERMINATE ends it early ...
//	TEST_END                 ->
//	                         <-     EXCHANGE_RESULTS
//	results (JSON)           ->
//	                         <-     results (JSON), DISPLAY_RESULTS
//	IPERF_DONE               ->
//
// A UDP stream starts with a datagram of four bytes, which the server answers with one of four. Datagrams of a test begin with
// 12 or, with 64-bit counters, 16 bytes, all big endian:
//
//	 0       4        8                       12 (16)
//	+-------+--------+-----------------------+
//	| sec   | usec   | number, from 1 on     |
//	+-------+--------+-----------------------+
//
// A Client and a Server are used once at a time, by one goroutine; their functions are called one after the other, from a goroutine of
// the test, which waits for them.
//
//	client := iperf3.Client{Params: iperf3.Params{Target: "10.0.0.1", Reverse: true}, Network: iperf3.Host{}}
//	result, err := client.Run(ctx)
//	if result != nil { // there is one after an interruption too
//		result.Text(os.Stdout)
//	}
package iperf3
