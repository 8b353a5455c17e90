package relayd

import (
	"context"
	"time"
)

const (
	drainTime   = 5 * time.Second  // that clients get to leave
	reconnectIn = 3 * time.Second  // over which they come back, spread evenly
	tryFor      = 30 * time.Second // that they go on trying, since a new process may take a while
)

// Drain ends the relay gently: it lets go of all that a new process takes over, its listeners first, so that one may start at
// once; tells the clients to connect again, each at another moment; and returns when all have left, after five seconds, or when ctx
// ends. Then everything is closed.
func (r *Relay) Drain(ctx context.Context) error {
	r.draining.Store(true)
	r.log.Info("draining", "clients", r.server.Stats().Clients, "at_most", drainTime)
	r.letGo()
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	err := r.server.Drain(ctx, reconnectIn, tryFor)
	if left := r.server.Stats().Clients; left > 0 {
		r.log.Warn("clients did not leave in time", "clients", left)
	}
	r.Close()
	return err
}

// letGo closes what a new process needs: ports, control socket and, at last, the lock of the state folder. Connections go on.
func (r *Relay) letGo() {
	r.hush.Do(func() {
		r.cancel() // nobody watches files, or asks for certificates, any more
		closeAll(r.listeners)
		closeAll(r.plain)
		if r.stun != nil {
			r.stun.Close()
		}
		if r.wgstun != nil {
			r.wgstun.close()
		}
		ctx, cancel := context.WithTimeout(context.Background(), controlTime)
		defer cancel()
		if r.monitor != nil {
			r.monitor.Shutdown(ctx)
		}
		if r.control != nil {
			r.control.Shutdown(ctx)
		}
		r.wg.Wait()
		if r.lock != nil {
			r.lock.Release()
		}
	})
}

// Close stops the relay at once. It may be called more than once, and returns when nothing of the relay runs any more.
func (r *Relay) Close() error {
	r.stop.Do(func() {
		r.letGo()
		if r.server != nil {
			r.server.Close()
		}
		for _, s := range r.http {
			s.Close()
		}
		r.serving.Wait()
		close(r.done)
	})
	<-r.done
	return nil
}
