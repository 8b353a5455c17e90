package iperf3

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// describe fills in what both ends know.
func (s *Start) describe(p *Params, t *test) {
	now := time.Now().UTC()
	s.Version, s.SystemInfo = "culvert, protocol of iperf "+protocolVersion, systemInfo()
	s.Timestamp = Timestamp{Time: now.Format("Mon, 02 Jan 2006 15:04:05 GMT"), Seconds: now.Unix()}
	s.TargetBitrate, s.SocketBuffer = max(p.Rate, 0), p.Window
	if len(t.streams) > 0 && t.streams[0].conn != nil {
		s.SendBuffer, s.ReceiveBuffer = buffersOf(t.streams[0].conn)
	}
	s.TestStart = TestStart{
		Protocol: strings.ToUpper(p.Protocol), Streams: p.Streams, Length: p.Length, Omit: int(p.Omit.Seconds()), Duration: p.Time.Seconds(),
		Bytes: p.Bytes, Blocks: p.Blocks, Reverse: int(oneIf(p.Reverse)), Bidir: int(oneIf(p.Bidir)), TOS: p.TOS, TargetBitrate: max(p.Rate, 0),
	}
}

// connected describes a connection.
func connected(id int, local, remote net.Addr) Connected {
	l, r := endpointOf(addrText(local)), endpointOf(addrText(remote))
	return Connected{Socket: id, LocalHost: l.Host, LocalPort: l.Port, RemoteHost: r.Host, RemotePort: r.Port}
}

func addrText(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// endpointOf splits "host:port". What is not of that form becomes the host.
func endpointOf(address string) Endpoint {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return Endpoint{Host: address}
	}
	port, _ := strconv.Atoi(service)
	if a, err := netip.ParseAddr(host); err == nil {
		host = a.Unmap().String()
	}
	return Endpoint{Host: host, Port: port}
}
