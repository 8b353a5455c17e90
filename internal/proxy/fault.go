package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Kind is why a request failed, as far as the client's protocol can tell.
type Kind uint8

// The kinds of failure.
const (
	General            Kind = iota
	NotAllowed              // by rules
	NetworkUnreachable      // no way leads there
	HostUnreachable         // a way leads there, the host does not answer
	Refused                 // by the target: nothing listens
	Timeout                 // nobody answered
	NameNotFound            // there is no such name, or it has no usable address
	Exhausted               // something has run out: descriptors, ports, places
	Unsupported             // the request asks for what this proxy does not do

	Kinds = iota // how many there are
)

func (k Kind) String() string {
	switch k {
	case NotAllowed:
		return "not allowed"
	case NetworkUnreachable:
		return "network unreachable"
	case HostUnreachable:
		return "host unreachable"
	case Refused:
		return "refused"
	case Timeout:
		return "timeout"
	case NameNotFound:
		return "name not found"
	case Exhausted:
		return "exhausted"
	case Unsupported:
		return "unsupported"
	default:
		return "general failure"
	}
}

// Error is a failure of a known kind. Its text is that of Err.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Fail returns an *Error with a text like fmt.Errorf.
func Fail(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// KindOf returns why something failed: the Kind of the outermost *Error, else what the errors of the system, of the resolver
// and of a context mean.
func KindOf(err error) Kind {
	var e *Error
	var name *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.As(err, &name):
		return kindOfName(name)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Timeout
	}
	for _, m := range errnoKinds {
		if errors.Is(err, m.errno) {
			return m.kind
		}
	}
	if errors.As(err, &timeout) && timeout.Timeout() {
		return Timeout
	}
	return General
}

func kindOfName(err *net.DNSError) Kind {
	switch {
	case err.IsNotFound:
		return NameNotFound
	case err.IsTimeout:
		return Timeout
	default:
		return HostUnreachable // the resolver failed, so nobody knows where the host is
	}
}

var errnoKinds = [...]struct {
	errno syscall.Errno
	kind  Kind
}{
	{syscall.ECONNREFUSED, Refused},
	{syscall.ECONNRESET, Refused}, // before the connection stood
	{syscall.ENETUNREACH, NetworkUnreachable},
	{syscall.ENETDOWN, NetworkUnreachable},
	{syscall.EADDRNOTAVAIL, NetworkUnreachable}, // no own address of that family
	{syscall.EAFNOSUPPORT, NetworkUnreachable},
	{syscall.EHOSTUNREACH, HostUnreachable},
	{syscall.EHOSTDOWN, HostUnreachable},
	{syscall.ETIMEDOUT, Timeout},
	{syscall.EACCES, NotAllowed},
	{syscall.EPERM, NotAllowed},
	{syscall.EMFILE, Exhausted},
	{syscall.ENFILE, Exhausted},
	{syscall.ENOBUFS, Exhausted},
	{syscall.ENOMEM, Exhausted},
	{syscall.EAGAIN, Exhausted}, // no local port is left
}
