package netstack

import (
	"reflect"
	"slices"
	"unsafe"

	"gvisor.dev/gvisor/pkg/atomicbitops"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// shares finds who has too much: for each peer that has more than its part, how much each of its connections may have; nil if all of them
// together have no more than most. What some do not need is for the others.
func shares(all []holding, most, least int64) (by map[uint16]int64, total int64) {
	peers := make(map[uint16]int64)
	for i := range all {
		peers[all[i].peer] += all[i].bytes
		total += all[i].bytes
	}
	if total <= most {
		return nil, total
	}
	part := level(slices.Collect(func(yield func(int64) bool) {
		for _, n := range peers {
			if !yield(n) {
				return
			}
		}
	}), most*3/4)
	by = make(map[uint16]int64)
	for peer, n := range peers {
		if n < part {
			continue
		}
		var each []int64
		for i := range all {
			if all[i].peer == peer {
				each = append(each, all[i].bytes)
			}
		}
		by[peer] = max(level(each, part), least)
	}
	return by, total
}

// level is how much each may have so that all together have sum.
func level(have []int64, sum int64) int64 {
	slices.Sort(have)
	for i, n := range have {
		rest := int64(len(have) - i)
		if n*rest >= sum {
			return sum / rest
		}
		sum -= n
	}
	return tcpMaxBuffer
}

// gVisor tells nobody how much an endpoint holds, hence the following: where it counts that itself, -1 if a release has it elsewhere, which
// a test notices.
var (
	// The memory of all that was received, in or out of order, with what belongs to it.
	receiveMemoryAt = offsetIn(reflect.TypeFor[tcp.Endpoint](), reflect.TypeFor[atomicbitops.Int32](), "rcvMemUsed")
	// The bytes that were written and have not been acknowledged; changed only with the endpoint locked.
	sendMemoryAt = offsetIn(reflect.TypeFor[tcp.Endpoint](), reflect.TypeFor[int](), "sndQueueInfo", "TCPSndBufState", "SndBufUsed")
)

// offsetIn follows the names of fields to one of the type want.
func offsetIn(t, want reflect.Type, names ...string) int {
	at := 0
	for _, name := range names {
		if t.Kind() != reflect.Struct {
			return -1
		}
		f, ok := t.FieldByName(name)
		if !ok || len(f.Index) != 1 {
			return -1
		}
		t, at = f.Type, at+int(f.Offset)
	}
	if t != want {
		return -1
	}
	return at
}

// receiveMemory is how many bytes ep holds that it has received; without what is around them if gVisor's own count is not found.
func receiveMemory(ep *tcp.Endpoint) int64 {
	if receiveMemoryAt >= 0 {
		return int64((*atomicbitops.Int32)(unsafe.Add(unsafe.Pointer(ep), receiveMemoryAt)).Load())
	}
	n, _ := ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	return int64(n)
}

// sendMemory is how many bytes ep holds that it is to send, or has sent: as many as it may if that is not found. It waits while a write is
// under way.
func sendMemory(ep *tcp.Endpoint) int64 {
	if sendMemoryAt < 0 {
		return ep.SocketOptions().GetSendBufferSize()
	}
	ep.LockUser()
	defer ep.UnlockUser()
	return max(0, int64(*(*int)(unsafe.Add(unsafe.Pointer(ep), sendMemoryAt)))) // the FIN is not counted in, but out
}
