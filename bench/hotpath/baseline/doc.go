// Package baseline measures gopacket on the packets of the benchmarks in bench/hotpath, under the same names, so that benchstat puts both
// into one table:
//
//	go test -run '^$' -bench Decode -count 8 ./bench/hotpath >new.txt
//	(cd bench/hotpath/baseline && go test -run '^$' -bench Decode -count 8) >>new.txt
//	benchstat -ignore pkg -col /by new.txt
//
// It is a module of its own, so that Culvert does not depend on gopacket. by=gopacket-parser decodes into layers that the caller keeps;
// by=gopacket-packet makes a new Packet of each, as most programs with gopacket do.
package baseline
