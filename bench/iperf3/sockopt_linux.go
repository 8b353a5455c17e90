package iperf3

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// withSocket calls f with the descriptor of a host's socket. It is false for connections of another stack.
func withSocket(c net.Conn, f func(fd int)) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) }) == nil
}

// sampleTCP reads a connection's TCP_INFO.
func sampleTCP(c net.Conn) (s tcpSample, ok bool) {
	withSocket(c, func(fd int) {
		i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		s = tcpSample{
			TCPInfo: TCPInfo{
				CongestionWindow: int64(i.Snd_cwnd) * int64(i.Snd_mss), SendWindow: int64(i.Snd_wnd),
				RTT: int64(i.Rtt), RTTVariance: int64(i.Rttvar), PathMTU: int64(i.Pmtu),
			},
			retransmits: int64(i.Total_retrans),
		}
		ok = true
	})
	return s, ok
}

// congestionOf is the algorithm that a connection uses; "" if that is not known.
func congestionOf(c net.Conn) (name string) {
	withSocket(c, func(fd int) { name, _ = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION) })
	return name
}

// mssOf is the maximum segment size of a connection; 0 if that is not known.
func mssOf(c net.Conn) (mss int) {
	withSocket(c, func(fd int) { mss, _ = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
	return mss
}

// buffersOf are the sizes of a socket's buffers; 0 if they are not known.
func buffersOf(c net.Conn) (send, receive int) {
	withSocket(c, func(fd int) {
		send, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		receive, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	})
	return send, receive
}

// tune sets what the parameters ask for on a socket, as far as the system lets it.
func (p *Params) tune(fd int) {
	if p.TOS > 0 {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, p.TOS)
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, p.TOS)
	}
	if p.Window > 0 {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, p.Window)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, p.Window)
	}
	if p.udp() {
		return
	}
	if p.MSS > 0 {
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, p.MSS)
	}
	if p.Congestion != "" {
		unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, p.Congestion)
	}
}

// systemInfo is what uname says.
func systemInfo() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "Linux"
	}
	text := ""
	for _, field := range [][65]byte{u.Sysname, u.Nodename, u.Release, u.Version, u.Machine} {
		text += unix.ByteSliceToString(field[:]) + " "
	}
	return text[:len(text)-1]
}
