// Package hotpath has no code of its own: it measures every stage that a packet passes, one by one and all together, and proves
// that packets of flows that stand cost no allocation.
//
//	go test -run '^$' -bench . -count 8 ./bench/hotpath | tee new.txt
//	benchstat -col /by new.txt
//
// Names are Benchmark<Stage>/<variant>/by=<whose>. by=culvert is this module. Any other name is a public alternative that does the
// same work on the same packets: gVisor's header package, a plain Go map, wireguard-go's own network stack and sockets. by=floor is what
// no implementation can avoid, such as the copying alone, and what the benchmark itself adds.
//
//	stage            what                                                                       where
//	Decode           bytes to addresses, ports and flags                                        here
//	Filter           the policy on a flow's first packet; what a later packet costs instead     here
//	Lookup           the flow table, found and not found                                        here
//	Translate        addresses, ports and checksums of a packet of a flow                       here
//	DeviceWrite      packets from WireGuard, through all of the data path, to host sockets      here
//	DeviceRead       packets from host sockets to WireGuard's buffers                           here
//	Pipeline         a WireGuard client, its tunnel, the exit, a socket of the host             here
//	GSO, GRO         a large segment cut into packets; packets put together                     ./netstack
//	Bind             batches of datagrams between two UDP sockets                               ./tunnel
//
// Sizes in names are those of IP packets; 64KiB is what one call writes to a TCP connection. MB/s counts the same bytes. packets/s
// counts packets at the tunnel's device, in the direction of the data. lost, where it is reported, counts packets that a socket's buffer
// had no room for: packets/s has only those that arrived, and the time spent waiting for the others makes the rest useless.
//
// Goroutines of the benchmarks of the whole pipeline bear the pprof label side, which is client, exit or host, so that a profile can
// tell what the exit does from what it takes to keep it busy:
//
//	go test -run '^$' -bench 'Pipeline/tcp/up/64KiB/by=culvert' -benchtime 5s -cpuprofile cpu.out ./bench/hotpath
//	go tool pprof -tagfocus side=exit -top cpu.out
//
// The sockets of the host are on an address of this machine that is not loopback, which an exit never reaches; without one, the
// benchmarks that need it are skipped.
//
// The module in the folder baseline measures gopacket, which this module does not depend on, on the same packets.
package hotpath
