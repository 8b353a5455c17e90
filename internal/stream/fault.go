package stream

import (
	"errors"
	"fmt"
	"net"
	"runtime/debug"
)

var errFault = errors.New("a fault of this program")

// Fault is what a panic was about, and where. Goroutines that serve a connection beside that of its handler pass one on by a
// panic with it there.
type Fault struct {
	Value any
	Stack []byte
}

// faultOf is what was recovered.
func faultOf(p any) *Fault {
	if f, ok := p.(*Fault); ok {
		return f
	}
	return &Fault{Value: p, Stack: debug.Stack()}
}

func (f *Fault) Error() string { return fmt.Sprint(f.Value) }

// rescue keeps a panic of a handler to its connection: one that a client can cause shall not cost all others theirs.
func (s *Server) rescue(c net.Conn) {
	p := recover()
	if p == nil {
		return
	}
	f := faultOf(p)
	c.Close()
	s.cfg.Logger.Error("a fault of this program has ended a connection: please report it", "listener", s.cfg.Name,
		"fault", f.Error(), "stack", string(f.Stack))
}
