//go:build !linux

package hostsock

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
)

func unsupported(what string) error {
	return fmt.Errorf("%s: host sockets are not supported on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

// TCP is a connection; there is none on this system.
type TCP struct{}

// DialTCP returns an error that wraps errors.ErrUnsupported.
func DialTCP(_ context.Context, dst netip.AddrPort, _ TCPOptions) (*TCP, error) {
	return nil, unsupported("dial tcp " + dst.String())
}

func (*TCP) Read([]byte) (int, error)              { return 0, unsupported("read") }
func (*TCP) Recv(*BufPool) (*Buf, int, error)      { return nil, 0, unsupported("read") }
func (*TCP) Writev([][]byte) (int, error)          { return 0, unsupported("write") }
func (*TCP) CloseWrite() error                     { return unsupported("shutdown") }
func (*TCP) Abort() error                          { return unsupported("abort") }
func (*TCP) Close() error                          { return unsupported("close") }
func (*TCP) SyscallConn() (syscall.RawConn, error) { return nil, unsupported("raw access") }
func (*TCP) LocalAddr() netip.AddrPort             { return netip.AddrPort{} }
func (*TCP) RemoteAddr() netip.AddrPort            { return netip.AddrPort{} }

// Stream uses a socket; there is no way to on this system.
type Stream struct{}

// NewStream returns an error that wraps errors.ErrUnsupported.
func NewStream(syscall.Conn) (*Stream, error) { return nil, unsupported("raw access") }

func (*Stream) Recv(*BufPool) (*Buf, int, error) { return nil, 0, unsupported("read") }
func (*Stream) Writev([][]byte) (int, error)     { return 0, unsupported("write") }
func (*Stream) Feed(func() bool) error           { return unsupported("read") }
func (*Stream) TryRecv([]byte) (int, error)      { return 0, unsupported("read") }

// Poller serves sockets; there is none on this system.
type Poller struct{}

// NewPoller returns an error that wraps errors.ErrUnsupported.
func NewPoller(int) (*Poller, error) { return nil, unsupported("new poller") }

func (*Poller) Close()       {}
func (*Poller) Stats() Stats { return Stats{} }

// OpenUDP returns an error that wraps errors.ErrUnsupported.
func (*Poller) OpenUDP(uint8, uint16, Receiver) (*UDP, error) { return nil, unsupported("open udp") }

// OpenPing returns an error that wraps errors.ErrUnsupported.
func (*Poller) OpenPing(uint8, Receiver) (*Ping, error) { return nil, unsupported("open ping") }

// UDP is a UDP socket; there is none on this system.
type UDP struct{}

func (*UDP) LocalPort() uint16            { return 0 }
func (*UDP) Send([]Datagram) (int, error) { return 0, unsupported("send udp") }
func (*UDP) SetDF(bool) error             { return unsupported("set df") }
func (*UDP) MTUTo(netip.Addr) int         { return 0 }
func (*UDP) Close()                       {}

// Ping is a ping socket; there is none on this system.
type Ping struct{}

func (*Ping) ID() uint16                                         { return 0 }
func (*Ping) Send(netip.Addr, uint16, []byte, uint8, bool) error { return unsupported("send echo") }
func (*Ping) MTUTo(netip.Addr) int                               { return 0 }
func (*Ping) Close()                                             {}
