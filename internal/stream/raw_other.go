//go:build !unix

package stream

import (
	"net"
	"syscall"
)

// Sockets are read through net alone, which means that an idle direction holds a small buffer.
const canReadRaw = false

func readSocket(uintptr, []byte) (int, bool, error) { return 0, false, nil }

func brokenSocket(net.Conn) error { return nil }

func hungUp(net.Conn) bool { return false }

// AwaitReadable returns at once where sockets cannot be asked, so that the read that follows waits.
func AwaitReadable(syscall.RawConn) error { return nil }

// Readable cannot tell where sockets cannot be asked.
func Readable(net.Conn) (readable, known bool) { return false, false }
