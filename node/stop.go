package node

import (
	"context"
	"time"
)

// Close stops the node: peers and hosts get resets for what is open, then the tunnel closes. It may be called more than
// once and returns when nothing of the node runs any more.
func (n *Node) Close() error {
	n.stop.Do(func() {
		n.mu.Lock() // a reload that has begun is over, and no other begins
		n.direct.stop()
		n.cancel()
		n.mu.Unlock()
		if n.control != nil {
			ctx, cancel := context.WithTimeout(context.Background(), controlTime)
			n.control.Shutdown(ctx)
			cancel()
		}
		n.closeHTTP()
		if n.services != nil {
			n.services.closeAll()
			n.egress.Close()
		}
		if n.dns != nil {
			n.dns.Close()
		}
		if n.net != nil && n.tunnel != nil {
			n.net.Reset()
			time.Sleep(resetTime)
		}
		if n.tunnel != nil {
			n.tunnel.Close()
		}
		if n.relays != nil {
			n.relays.Close()
		}
		if n.net != nil {
			n.mu.Lock() // a reload that has begun opens no other
			n.replaceUpstream(nil)
			n.mu.Unlock()
			n.net.Close()
		}
		n.closeFlowLog()
		n.wg.Wait()
		close(n.done)
	})
	<-n.done
	return nil
}

// Shutdown is Close for a node that people use: nothing new is accepted by its services, and connections that are open get until ctx
// ends to finish. Peers' flows through the exit count too.
func (n *Node) Shutdown(ctx context.Context) error {
	n.stopping.Store(true)
	n.mu.Lock()
	s := n.services
	n.mu.Unlock()
	if s != nil {
		s.drain(ctx)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for n.net != nil && n.net.Flows().TCP > 0 {
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		case <-n.done:
		}
		break
	}
	return n.Close()
}

// controlTime is how long a client of the control socket may still take when the node stops.
const controlTime = time.Second

// resetTime lets the resets of a shutdown leave through the tunnel.
const resetTime = 50 * time.Millisecond
