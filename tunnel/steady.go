package tunnel

import "golang.zx2c4.com/wireguard/tun"

// steadyTUN hides the up and down events of a tun.Device from wireguard-go, which would open and close the sockets on
// them: Start and Close alone do. MTU changes pass.
type steadyTUN struct {
	tun.Device
	events chan tun.Event
}

func steady(dev tun.Device) tun.Device {
	s := &steadyTUN{dev, make(chan tun.Event)}
	go func() {
		defer close(s.events)
		for e := range dev.Events() {
			if e&tun.EventMTUUpdate != 0 {
				s.events <- tun.EventMTUUpdate
			}
		}
	}()
	return s
}

// Events implements tun.Device.
func (s *steadyTUN) Events() <-chan tun.Event { return s.events }
