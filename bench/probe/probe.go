// Package probe measures what a program meets on a way: the throughput of package iperf3, with round trips while nothing else is
// under way and under the load of the test, and how fast connections can be made. It is what culvert bench runs, beside a node inside
// its mesh and else on the host.
//
// It does not choose the way: a Way gives it the network. It prints nothing: what there is to tell comes as Events with their text.
//
// Both ends may be stock iperf3. Round trips come from the echo beside our own server (echo.go) where there is one, else from ICMP
// echo, else from connections to the server's port, which it denies while a test holds it. Connections are counted to a port beside our
// own server too, else by such denials.
//
// Functions may be called from several goroutines; emit is called by one at a time.
//
//	way := probe.Way{Network: iperf3.Host{}, Echo: probe.HostEcho}
//	order := probe.Order{Params: iperf3.Params{Target: "192.0.2.1"}, RTT: true}
//	err := probe.Run(ctx, order, way, func(e probe.Event) error {
//		_, err := io.WriteString(os.Stdout, e.Text)
//		return err
//	})
package probe

import (
	"context"
	"net/netip"
	"time"

	"culvert.dev/culvert/bench/iperf3"
)

// Way is where a measurement takes place.
type Way struct {
	Network iperf3.Network

	// Echo sends an ICMP echo request and waits for the answer; nil where that cannot be.
	Echo func(ctx context.Context, to netip.Addr) (time.Duration, error)

	// Hosts are the addresses that a server answers echoes on. None means that of its own listener.
	Hosts []string
}

// Order is what a client measures.
type Order struct {
	iperf3.Params

	RTT         bool // round trips idle and under load
	Connections bool // connections per second instead of throughput; Streams says how many are under way at once
}

// ServerOrder is what a server does.
type ServerOrder struct {
	Address string        // as iperf3.Server has it
	OneOff  bool          // end after one test
	MaxTime time.Duration // of a test; longer ones are refused
}

// Kinds of events.
const (
	EventListening = "listening" // of a server
	EventStart     = "start"     // a test has its connections
	EventInterval  = "interval"  // progress
	EventSummary   = "summary"   // of one part of the measurement
	EventResult    = "result"    // a test has ended; Document has all of it
	EventFailure   = "failure"   // a server's test has ended early; it goes on serving
)

// Event is something to tell. Text is one or more whole lines for people, and may be empty.
type Event struct {
	Event    string    `json:"event"`
	Text     string    `json:"text,omitempty"`
	Document *Document `json:"document,omitempty"` // of EventResult
}

// Document is that of `iperf3 -J`, with what this package adds.
type Document struct {
	*iperf3.Result
	Culvert Added `json:"culvert"`
}

// Added is what iperf3 does not measure. Way to Path are its caller's.
type Added struct {
	Way      string `json:"way,omitempty"`      // "mesh" or "plain"
	Node     string `json:"node,omitempty"`     // that measured, in the mesh
	Peer     string `json:"peer,omitempty"`     // that was reached, or leads on
	Path     string `json:"path,omitempty"`     // to the peer at the end: "direct", "relay"
	Endpoint string `json:"endpoint,omitempty"` // of the path

	RTT         *RoundTrips  `json:"rtt,omitempty"`
	Connections *Connections `json:"connections,omitempty"`
}

// RoundTrips are measured over a whole test.
type RoundTrips struct {
	Method string  `json:"method"` // "udp echo", "icmp echo" or "tcp set-up"
	Idle   Latency `json:"idle"`
	Loaded Latency `json:"loaded"`
}

// Connections is the result of a connection rate test.
type Connections struct {
	Target    string `json:"target"` // a port beside our own server, else the server's
	Intervals []Rate `json:"intervals"`
	Total     Rate   `json:"total"`
}
