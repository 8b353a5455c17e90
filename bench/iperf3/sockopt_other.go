//go:build !linux

package iperf3

import (
	"net"
	"runtime"
)

// Other systems tell nothing about a connection, and take no options.

func withSocket(net.Conn, func(fd int)) bool    { return false }
func sampleTCP(net.Conn) (s tcpSample, ok bool) { return s, false }
func congestionOf(net.Conn) string              { return "" }
func mssOf(net.Conn) int                        { return 0 }
func buffersOf(net.Conn) (send, receive int)    { return 0, 0 }
func (p *Params) tune(fd int)                   {}
func systemInfo() string                        { return runtime.GOOS + " " + runtime.GOARCH }
