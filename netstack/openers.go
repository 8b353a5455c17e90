package netstack

import (
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// openers are the goroutines that open connections: they dial, and shake hands by gVisor, whose calls go so deep that a new goroutine's
// stack is copied half a dozen times until it is large enough, which is a fifteenth of all that a short connection costs. So an opener
// that is done stays for a moment and takes further requests. A connection that is open runs on goroutines of its own, whose stacks
// stay small.
type openers struct {
	requests chan *tcp.ForwarderRequest // to one that waits; nobody waits to send
	waiting  atomic.Int32
}

const (
	maxOpeners = 64 // that wait; as many as are needed work
	openerWait = time.Second
)

// acceptTCP is called for each SYN that goes to gVisor, on a new goroutine. That becomes an opener if none waits.
func (n *Net) acceptTCP(r *tcp.ForwarderRequest) {
	o := &n.openers
	select {
	case o.requests <- r:
		return
	default:
	}
	var patience *time.Timer
	for {
		n.openTCP(r)
		if o.waiting.Add(1) > maxOpeners {
			o.waiting.Add(-1)
			return
		}
		if patience == nil {
			patience = time.NewTimer(openerWait)
			defer patience.Stop()
		} else {
			patience.Reset(openerWait)
		}
		more := false
		select {
		case r = <-o.requests:
			more = true
		case <-patience.C:
		case <-n.ctx.Done():
		}
		o.waiting.Add(-1)
		if !more {
			return
		}
	}
}
