package attach

import (
	"context"
	"errors"
)

// Done is closed when the attachment has ended.
func (a *Attachment) Done() <-chan struct{} { return a.done }

// Err is why it has ended by itself; nil if it was told to, or runs.
func (a *Attachment) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fault
}

// Close lets go of the device: direct endpoints stay, others are put back to what they were. Peers are not told goodbye, since
// WireGuard goes on and their direct paths with it. It may be called more than once and returns when nothing runs any more.
func (a *Attachment) Close() error {
	a.stop.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
		defer cancel()
		if a.control != nil {
			limited, cancel := context.WithTimeout(ctx, controlTime)
			a.control.Shutdown(limited)
			cancel()
		}
		if a.monitor != nil {
			a.monitor.Shutdown(ctx)
		}
		if a.transport != nil {
			a.transport.freeze()
		}
		a.cancel()
		a.mover.Wait()
		a.leave(ctx)
		if a.relays != nil {
			a.relays.Close()
		}
		if a.ports != nil {
			a.ports.closeAll()
		}
		if a.sockets != nil {
			a.sockets.closeAll()
		}
		a.wg.Wait()
		if a.closeDevice != nil {
			a.closeDevice()
		}
		close(a.done)
	})
	<-a.done
	return nil
}

// leave leaves the device in order.
func (a *Attachment) leave(ctx context.Context) {
	if a.transport != nil && !errors.Is(a.Err(), errRekeyed) {
		a.transport.leave(ctx)
	}
	if a.service != nil {
		if err := a.service.remove(ctx); err != nil {
			a.log.Error("the device keeps a peer that it need not have", "err", err)
		}
	}
}
