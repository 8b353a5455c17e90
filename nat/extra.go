package nat

import "sync/atomic"

// extra is what only some flows need: those that a NAT translates, and those whose TCP state Track follows. The mappings are
// set before the flow is entered and never change.
type extra struct {
	near *mapping // of the inside end that opened the flow; nil if it came from outside, or is not translated
	far  *mapping // of the inside end that it goes to, if that was found by its external address; else nil
	tcp  tcpConn

	answered atomic.Bool // the inside end of far has sent something back
}

// extraOf returns the flow's extra part, making it if there is none.
func (f *Flow) extraOf() *extra {
	if x := f.extra.Load(); x != nil {
		return x
	}
	f.extra.CompareAndSwap(nil, &extra{})
	return f.extra.Load()
}
