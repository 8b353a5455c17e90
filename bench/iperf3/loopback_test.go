package iperf3

import (
	"encoding/json"
	"net"
	"strconv"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

const short = 200 * time.Millisecond

// TestClientAndServer runs what a test can do, on the host's network and on one that is nothing but the interface.
func TestClientAndServer(t *testing.T) {
	settled(t)
	for name, p := range map[string]Params{
		"TCP":                 {},
		"TCP reverse":         {Reverse: true},
		"TCP bidir":           {Bidir: true},
		"TCP streams":         {Streams: 3},
		"TCP reverse streams": {Reverse: true, Streams: 3, NoDelay: true},
		"TCP bidir streams":   {Bidir: true, Streams: 2},
		"TCP rate":            {Rate: 50e6, Length: 10_000},
		"TCP omit":            {Omit: time.Second, RepeatingPayload: true},
		"TCP options":         {Window: 100_000, MSS: 1000, TOS: 16, Congestion: "reno"},
		"UDP":                 {Protocol: "udp", Rate: 10e6, Length: 1000},
		"UDP default":         {Protocol: "udp"},
		"UDP reverse":         {Protocol: "udp", Rate: 10e6, Length: 1000, Reverse: true},
		"UDP bidir streams":   {Protocol: "udp", Rate: 5e6, Length: 1000, Bidir: true, Streams: 2, UDPCounters64: true},
		"UDP omit":            {Protocol: "udp", Rate: 10e6, Length: 1000, Omit: time.Second},
		"UDP bursts":          {Protocol: "udp", Rate: 10e6, Length: 1000, Burst: 10, Reverse: true},
	} {
		p.Time, p.Interval = short, 100*time.Millisecond
		for network, n := range map[string]Network{"host": nil, "plain": plain{}} {
			t.Run(name+" "+network, func(t *testing.T) {
				t.Parallel()
				s := serve(t, Server{Network: n, Interval: 100 * time.Millisecond})
				c := s.client(p)
				c.Network = n
				intervals := 0
				c.OnInterval = func(Interval) { intervals++ }
				r, err := c.Run(t.Context())
				if err != nil {
					t.Fatalf("%s: %v", network, err)
				}
				if err := s.outcome(t); err != nil {
					t.Errorf("%s: the server: %v", network, err)
				}
				checkResult(t, network, &p, r, n == nil)
				checkResult(t, network+" server", &p, s.last, n == nil)
				if intervals < 1 || intervals != len(r.Intervals) {
					t.Errorf("%s: %d intervals, %d in the result", network, intervals, len(r.Intervals))
				}
			})
		}
	}
}

// checkResult checks that figures fit to each other.
func checkResult(t *testing.T, name string, p *Params, r *Result, host bool) {
	t.Helper()
	directions := []struct {
		sent, received Counts
		sum            *Counts
	}{{r.End.SumSent, r.End.SumReceived, r.End.Sum}}
	if p.Bidir {
		directions = append(directions, directions[0])
		directions[1].sent, directions[1].received, directions[1].sum = *r.End.SumSentBidirReverse, *r.End.SumReceivedBidirReverse, r.End.SumBidirReverse
	}
	for i, d := range directions {
		if d.sent.Bytes == 0 || d.received.Bytes == 0 || d.sent.BitsPerSecond == 0 {
			t.Errorf("%s: direction %d: nothing was sent or received: %+v %+v", name, i, d.sent, d.received)
		}
		if d.sent.Seconds < 0.15 || d.sent.Seconds > 60 {
			t.Errorf("%s: direction %d: took %v s", name, i, d.sent.Seconds)
		}
		if p.Omit == 0 && d.received.Bytes > d.sent.Bytes {
			t.Errorf("%s: direction %d: %d bytes were received, %d sent", name, i, d.received.Bytes, d.sent.Bytes)
		}
		if p.Protocol != "udp" {
			if host != (d.sent.Retransmits != nil) {
				t.Errorf("%s: direction %d: retransmissions %v", name, i, d.sent.Retransmits)
			}
			continue
		}
		if length := r.Start.TestStart.Length; d.sum == nil || *d.sum.Packets*int64(length) != d.sent.Bytes || p.Omit == 0 && *d.received.Packets > *d.sent.Packets {
			t.Errorf("%s: direction %d: packets of %d: %+v, %+v", name, i, length, d.sum, d.sent)
		}
		most := float64(p.Rate) * float64(max(p.Streams, 1)) * 1.4 // a busy machine may send less
		if p.Omit > 0 {
			most *= 2 // a sender makes up for what it did not get to while omitting
		}
		if p.Rate > 0 && d.sent.BitsPerSecond > most {
			t.Errorf("%s: direction %d: %v bit/s, want %d on each of %d", name, i, d.sent.BitsPerSecond, p.Rate, p.Streams)
		}
	}
	streams := max(p.Streams, 1) * len(directions)
	if len(r.End.Streams) != streams || len(r.Start.Connected) != streams {
		t.Errorf("%s: %d streams, %d connections", name, len(r.End.Streams), len(r.Start.Connected))
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// TestIntervalsAddUp: nothing is counted twice, and nothing is forgotten.
func TestIntervalsAddUp(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{})
	r, err := s.client(Params{Bidir: true, Time: short, Omit: time.Second, Interval: 100 * time.Millisecond}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var forward, backward, omitted int64
	for _, i := range r.Intervals {
		if *i.Sum.Omitted {
			omitted += i.Sum.Bytes
			continue
		}
		forward += i.Sum.Bytes
		backward += i.SumBidirReverse.Bytes
	}
	if forward != r.End.SumSent.Bytes || backward != r.End.SumReceivedBidirReverse.Bytes || omitted == 0 {
		t.Errorf("intervals have %d and %d bytes, the end %d and %d; %d omitted",
			forward, backward, r.End.SumSent.Bytes, r.End.SumReceivedBidirReverse.Bytes, omitted)
	}
}

func TestEndByBytesAndBlocks(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{})
	for name, p := range map[string]Params{
		"bytes":         {Bytes: 1_000_001, Length: 1000},
		"blocks":        {Blocks: 1001, Length: 1000},
		"streams":       {Blocks: 1001, Length: 1000, Streams: 3},
		"datagrams":     {Blocks: 1001, Length: 1000, Protocol: "udp", Rate: 100e6},
		"both ways":     {Blocks: 1001, Length: 1000, Bidir: true},
		"reverse":       {Bytes: 1_000_001, Length: 1000, Reverse: true},
		"UDP reverse":   {Bytes: 1_000_001, Length: 1000, Reverse: true, Protocol: "udp", Rate: 100e6},
		"after omitted": {Blocks: 1001, Length: 1000, Omit: time.Second, Rate: 100e6},
	} {
		r, err := s.client(p).Run(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := r.End.SumReceived.Bytes; !p.Reverse && !p.Bidir && p.Protocol != "udp" && got != r.End.SumSent.Bytes && p.Omit == 0 {
			t.Errorf("%s: %d bytes are received, %d sent", name, got, r.End.SumSent.Bytes)
		}
		switch got := r.End.SumSent.Bytes; {
		case p.Reverse && r.End.SumReceived.Bytes < p.Bytes, p.Bidir && got == 0:
			t.Errorf("%s: %d bytes", name, r.End.SumReceived.Bytes)
		case p.Omit > 0 && got != 1_001_000 && got != 1_002_000: // a block may be under way when omitting ends
			t.Errorf("%s: %d bytes", name, got)
		case !p.Reverse && !p.Bidir && p.Omit == 0 && got != 1_001_000:
			t.Errorf("%s: %d bytes", name, got)
		}
	}
}

func TestServerOutput(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{Interval: 100 * time.Millisecond})
	r, err := s.client(Params{Time: short, ServerOutput: true}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text := r.ServerOutputText
	for _, want := range []string{"Accepted connection from 127.0.0.1", "  0.00-", "receiver"} {
		if !contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestAnswerOverUDPMayGetLost(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{})
	c := s.client(Params{Protocol: "udp", Time: short, Rate: 10e6, Length: 1000})
	c.Network = &dropping{left: 1}
	r, err := c.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.End.SumReceived.Lost != 0 || *r.End.SumReceived.Packets == 0 {
		t.Errorf("got %+v", r.End.SumReceived)
	}
}

func TestSizeOfDatagramsFitsTheNetwork(t *testing.T) {
	s := serve(t, Server{Network: plain{}})
	c := s.client(Params{Protocol: "udp", Blocks: 1})
	c.Network = plain{}
	if r, err := c.Run(t.Context()); err != nil || r.Start.TestStart.Length != otherUDPLength {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestIPv6(t *testing.T) {
	address := net.JoinHostPort("::1", strconv.Itoa(testnet.FreePort()))
	l, err := Host{}.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Skipf("no IPv6: %v", err)
	}
	l.Close()
	ready := make(chan struct{})
	s := Server{Address: address, OnListen: closer(ready)}
	ended := make(chan error, 1)
	s.OneOff = true
	go func() { ended <- s.Serve(t.Context()) }()
	<-ready
	c := Client{Params: Params{Target: address, Protocol: "udp", Blocks: 20, Rate: 10e6, Length: 100}}
	if r, err := c.Run(t.Context()); err != nil || *r.End.SumSent.Packets != 20 {
		t.Errorf("got %+v, %v", r, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
