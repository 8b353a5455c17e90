// Package forward has the engines that carry connections and datagrams from a listener to one target: [TCP] and [UDP]. A
// program of the host reaches a host of a mesh through them, and a peer of a mesh a program of the host.
//
// It is no proxy: the client has no say in where it goes. It knows of no mesh and no configuration either: listeners are
// handed in, and targets are opened by a [Dial] function. For those of the host there are [ListenHost], [ListenPacketHost]
// and [DialHost], which know unix sockets too.
//
// Both engines can put a PROXY protocol header of version 2 in front of what they carry, so that the target learns the
// client's address. Everything is bounded: sessions in total and per client, datagrams that wait for a target, times.
// Engines are safe for concurrent use.
//
//	t := forward.NewTCP(forward.TCPConfig{Name: "db", Dial: func(ctx context.Context, _ forward.Origin) (net.Conn, error) {
//		return forward.DialHost(ctx, "tcp", "127.0.0.1:5432")
//	}})
//	s := stream.NewServer(stream.ServerConfig{Name: "db", Handle: t.Handle})
//	go s.Serve(listener)
//	defer s.Close()
package forward

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Defaults of the configurations.
const (
	DefaultDialTime     = 30 * time.Second
	DefaultIdle         = 2 * time.Minute // RFC 4787 section 4.3, REQ-5: no less than two minutes
	DefaultIdleAnswered = 5 * time.Minute // the same: five minutes are recommended
	DefaultMaxSessions  = 1024
)

// Dial opens the target for a client. The context ends with the engine, with the time for dialling, and when Dial returns.
//
// The connection for a UDP engine keeps the boundaries of datagrams, and its socket refuses what others than the target send
// to it. Only Read, Write and Close are called; Write should not wait for long, as all sessions of a listener would wait with
// it. If it has a method WaitRead() error, which returns once Read would not wait or would fail, an idle session holds no
// buffer, as is the case for sockets of the host; the same goes for a listener that is not one of the host.
type Dial func(ctx context.Context, from Origin) (net.Conn, error)

// Origin is where a connection or a datagram came from and to. IPv4 addresses are never mapped ones. It is the zero Origin
// for the client of a unix socket.
type Origin struct {
	Client netip.AddrPort
	Local  netip.AddrPort // of the listener, as the client addressed it; its port tells the members of a [Range] apart
}

// Stats of an engine. Those marked UDP stay 0 for TCP.
type Stats struct {
	Active       int    // connections or sessions now, dialling ones included
	Total        uint64 // begun since the engine was made
	ToTarget     uint64 // bytes of payload; of a TCP connection, counted at its end
	ToClient     uint64
	DialFailures uint64
	Refused      uint64 // connections or datagrams of clients outside AllowFrom
	Evicted      uint64 // UDP: sessions that ended to make room
	Dropped      uint64 // UDP: datagrams that found no room, on the way to a target that is not open yet or does not read
	Oversize     uint64 // UDP: datagrams that are too long for the socket they should leave by
	LastError    string // of dialling or of a target, "" if there was none yet
	LastErrorAt  time.Time
}

// origin returns where c comes from.
func origin(client, local net.Addr) Origin {
	o := Origin{Client: addrPort(client), Local: addrPort(local)}
	if !o.Client.IsValid() || !o.Local.IsValid() {
		return Origin{}
	}
	return o
}

// addrPort returns the zero AddrPort for a kind of address that has none.
func addrPort(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return unmap(a.AddrPort())
	}
	return netip.AddrPort{}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// allowed reports whether a client may use the engine. Who may use a unix socket is what the mode of its file says.
func allowed(from []netip.Prefix, client netip.Addr) bool {
	if len(from) == 0 || !client.IsValid() {
		return true
	}
	client = client.WithZone("") // a prefix contains no address with a zone
	for _, p := range from {
		if p.Contains(client) {
			return true
		}
	}
	return false
}

func orDefault[T int | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
