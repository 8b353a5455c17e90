// Package load makes the loads that stock tools lack, and counts what arrives of them: floods of UDP datagrams that the kernel
// cuts apart and joins (UDP_SEGMENT, UDP_GRO), TCP connections per second, flows that are held, round-trip times at a fixed
// pace, and a line with a delay.
//
// It is no product code and knows no exit: it sees sockets. A Server stands at the far side and answers all of them but the
// Line, which stands between a WireGuard client and its peer. Each generator is a struct whose zero values mean defaults and a
// method that runs it; generators may run at the same time. Main makes commands of them that print one JSON document a line,
// for programs that start themselves again inside a network namespace:
//
//	if len(os.Args) > 1 && os.Args[1] == "load" {
//		os.Exit(load.Main(os.Args[2:]))
//	}
//
// and then, in the namespaces:
//
//	compare load serve -listen 198.51.100.10:5400
//	compare load flood -to 198.51.100.10:5400 -size 64 -direction down -length 5s
//
// Much of it needs Linux; elsewhere the package is empty.
package load
