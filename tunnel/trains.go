package tunnel

import "sync/atomic"

// A train is a run of equally long datagrams that the bind hands to the kernel as one message, and that a receiver gets as one. Long
// trains are cheap, but what they cost the receiver depends on what is inside:
//
//   - Segments of TCP come no faster than the receiver takes them. Their trains are as long as the kernel permits.
//   - Datagrams come as fast as they are sent. A receiver that is too slow for them has them in its queues first, and the longer the
//     trains the more of them: stock wireguard-go reads two trains at a time, calls that a batch, and has room for 1,024 batches of
//     packets in 64 KiB of memory each. With a hundred packets to a batch it spends as much time on fresh memory as on decrypting, and delivers
//     that much less of a flood. Their trains are short, unless they are small.
//
// The bind cannot tell them apart once they are encrypted, so trains remembers of what kind the packets read last were, most of them.
// By the time they are sent others may have been read; then a few trains are of another length, which is no harm.
type trains struct{ short atomic.Bool }

const (
	// shortTrain is how many datagrams one of the short trains has at least if there are as many: two of them make a batch of 32.
	shortTrain = 16
	// shortTrainBytes is what it may grow to beyond that: small datagrams cost so much more each that the system calls count.
	shortTrainBytes = 8 << 10
)

// trainsOf returns what decides the trains of a bind; nil if that bind decides by itself.
func trainsOf(bind any) *trains {
	if b, ok := bind.(interface{ lengths() *trains }); ok {
		return b.lengths()
	}
	return nil
}

// saw is told of packets that are about to be encrypted.
func (t *trains) saw(bufs [][]byte, sizes []int, offset int) {
	if t == nil {
		return
	}
	datagrams := 0
	for i, b := range bufs {
		if isUDP(b[offset : offset+sizes[i]]) {
			datagrams++
		}
	}
	if short := 2*datagrams > len(bufs); len(bufs) > 0 && short != t.short.Load() {
		t.short.Store(short)
	}
}

// isUDP looks at a packet's protocol; one behind extension headers of IPv6 is not found.
func isUDP(pkt []byte) bool {
	const udp = 17
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4:
		return pkt[9] == udp
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		return pkt[6] == udp
	}
	return false
}
