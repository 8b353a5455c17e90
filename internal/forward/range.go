package forward

import (
	"fmt"
	"io"
)

// Range pairs the ports of listeners with those of targets, one by one and in order. One engine serves them all: its Dial
// asks Target which port to open.
type Range struct {
	First, Last uint16 // listeners
	To          uint16 // the target's port of First
}

// Check reports a range that is empty, backwards or leads beyond the last port.
func (r Range) Check() error {
	switch {
	case r.First == 0 || r.To == 0:
		return fmt.Errorf("ports %d-%d to %d: 0 is no port", r.First, r.Last, r.To)
	case r.Last < r.First:
		return fmt.Errorf("ports %d-%d: the last port comes before the first", r.First, r.Last)
	case int(r.To)+int(r.Last-r.First) > 65535:
		return fmt.Errorf("ports %d-%d to %d: the last port has no counterpart below 65536", r.First, r.Last, r.To)
	}
	return nil
}

// Target returns the target's port for a listener's (Origin.Local.Port()); ok is false outside of the range.
func (r Range) Target(local uint16) (port uint16, ok bool) {
	if local < r.First || local > r.Last {
		return 0, false
	}
	return r.To + (local - r.First), true
}

// OpenRange opens a listener on each port from first to last, and all or none: if one fails, those before it are closed.
func OpenRange[L io.Closer](first, last uint16, open func(port uint16) (L, error)) ([]L, error) {
	var opened []L
	for port := int(first); port <= int(last); port++ {
		l, err := open(uint16(port))
		if err != nil {
			for _, l := range opened {
				l.Close()
			}
			return nil, err
		}
		opened = append(opened, l)
	}
	return opened, nil
}
