package netstack

import (
	"maps"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"gvisor.dev/gvisor/pkg/atomicbitops"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// unread bounds the memory of what peers have sent by TCP and nobody has taken yet: a slow program behind a proxy, a slow server behind
// the exit. gVisor bounds it for each connection by its receive buffer, of up to 8 MiB; thousands of connections would hold gigabytes.
// So if all of them hold too much, their buffers shrink to what each may have, as the kernel does it for tcp_mem. What comes for a
// connection whose buffer is full is dropped by gVisor, although there was a window for it, and repeated by the far end: the last resort.
// When there is room again, buffers become what they were.
//
// It is looked after by whoever delivers: the more there is, the more often.
type unread struct {
	most  int64        // bytes of memory, about
	since atomic.Int64 // bytes delivered since the last look
	after atomic.Int64 // how many until the next

	pressed atomic.Bool // some buffers are smaller

	mu     sync.Mutex              // held while somebody looks; guards the following
	limits map[*tcp.Endpoint]int64 // of those that have a smaller buffer, what it was
	held   []int64                 // of one look
	eps    []*tcp.Endpoint
}

const (
	// unreadMost is for what is fast and far, too: eight connections over 80 ms at 800 Mbit/s, none of which is read in time.
	unreadMost = 64 << 20

	unreadLeast = 8 << 10 // a few segments
)

func (u *unread) init() { u.bound(ofMemory(unreadMost)) }

// ofMemory is most, or an eighth of the runtime's memory limit where that is less: a small container.
func ofMemory(most int64) int64 { return min(most, debug.SetMemoryLimit(-1)/8) }

func (u *unread) bound(most int64) {
	u.most, u.limits = most, make(map[*tcp.Endpoint]int64)
	u.after.Store(most / 4)
}

// arrived counts what was delivered to s.
func (u *unread) arrived(s *stack.Stack, bytes int) {
	if u.since.Add(int64(bytes)) >= u.after.Load() && u.mu.TryLock() {
		u.look(s)
		u.mu.Unlock()
	}
}

// group is how large a run of segments may be that is delivered as one: gVisor takes it whole, however little room there is.
func (u *unread) group() int {
	if u.pressed.Load() {
		return unreadLeast
	}
	return maxGroup
}

// relax looks if connections have smaller buffers than they should, which those that deliver would do only when more has come.
func (u *unread) relax(s *stack.Stack) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.limits) > 0 {
		u.look(s)
	}
}

// look fits buffers to what is held. u.mu is held.
func (u *unread) look(s *stack.Stack) {
	u.since.Store(0)
	u.held, u.eps = u.held[:0], u.eps[:0]
	var total int64
	for _, t := range s.RegisteredEndpoints() {
		if ep, ok := t.(*tcp.Endpoint); ok {
			n := receiveMemory(ep)
			u.eps, u.held = append(u.eps, ep), append(u.held, n)
			total += n
		}
	}
	switch {
	case total > u.most:
		u.tighten(level(u.held, u.most*3/4))
	case total < u.most/2:
		for ep, size := range u.limits {
			so := ep.SocketOptions()
			so.SetReceiveBufferSize(max(size, so.GetReceiveBufferSize()), false)
		}
		clear(u.limits)
	default:
		maps.DeleteFunc(u.limits, func(ep *tcp.Endpoint, _ int64) bool { return !connected(ep) })
	}
	u.pressed.Store(len(u.limits) > 0)
	clear(u.eps)
	u.after.Store(max(u.most-total, u.most/4) / 4)
}

// tighten gives none a larger buffer than most. That those that hold little are among them is for those that are yet to fill theirs.
func (u *unread) tighten(most int64) {
	most = max(most, unreadLeast)
	for _, ep := range u.eps {
		so := ep.SocketOptions()
		size := so.GetReceiveBufferSize()
		if size <= most {
			continue
		}
		if _, ok := u.limits[ep]; !ok {
			u.limits[ep] = size
		}
		so.SetReceiveBufferSize(most, false) // true would end gVisor's tuning of it for good
	}
}

func connected(ep *tcp.Endpoint) bool {
	switch ep.EndpointState() {
	case tcp.StateClose, tcp.StateError, tcp.StateTimeWait:
		return false
	}
	return true
}

// level is how much each may have so that all together have sum; what some do not need is for the others.
func level(held []int64, sum int64) int64 {
	slices.Sort(held)
	for i, n := range held {
		rest := int64(len(held) - i)
		if n*rest >= sum {
			return sum / rest
		}
		sum -= n
	}
	return unreadMost
}

// receiveMemoryAt is where gVisor counts the memory of all that an endpoint has received and holds, in or out of order, with what belongs
// to it. It tells nobody, hence so; -1: a release has it elsewhere, and a test notices.
var receiveMemoryAt = func() int {
	f, ok := reflect.TypeFor[tcp.Endpoint]().FieldByName("rcvMemUsed")
	if !ok || f.Type != reflect.TypeFor[atomicbitops.Int32]() {
		return -1
	}
	return int(f.Offset)
}()

// receiveMemory is how many bytes ep holds that it has received; without what is around them if gVisor's own count is not found.
func receiveMemory(ep *tcp.Endpoint) int64 {
	if receiveMemoryAt >= 0 {
		return int64((*atomicbitops.Int32)(unsafe.Add(unsafe.Pointer(ep), receiveMemoryAt)).Load())
	}
	n, _ := ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	return int64(n)
}
