package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// AwaitHangup waits until the far end has ended its bytes, without taking any that came before; broken: both directions are dead. ok is
// false when stop was closed before. Only one call may wait at a time. It is what stream.WatchHangup looks for.
func (c *Conn) AwaitHangup(stop <-chan struct{}) (broken, ok bool) {
	changed := make(chan struct{}, 1)
	c.hangup.Store(&changed)
	defer c.hangup.Store(nil)
	for {
		switch c.state() {
		case tcp.StateError, tcp.StateClose:
			return true, true
		case tcp.StateCloseWait, tcp.StateLastAck, tcp.StateClosing, tcp.StateTimeWait:
			return false, true
		}
		if c.ep.Readiness(waiter.ReadableEvents|waiter.EventRdHUp)&waiter.EventRdHUp != 0 { // the state follows after the event
			return false, true
		}
		select {
		case <-changed:
		case <-stop:
			return false, false
		}
	}
}

// tellHangup lets AwaitHangup look again.
func (c *Conn) tellHangup() {
	if changed := c.hangup.Load(); changed != nil {
		select {
		case *changed <- struct{}{}:
		default:
		}
	}
}
