//go:build linux

package load

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestRTTOverBothProtocols(t *testing.T) {
	to := startServer(t, "127.0.0.1:0")
	for _, network := range []string{"tcp", "udp"} {
		r, err := RTT{To: to, Network: network, Every: 2 * time.Millisecond, Size: 100, Warmup: 20 * time.Millisecond, Length: 200 * time.Millisecond}.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if r.Sent != 100 || r.Lost != 0 || r.Network != network || r.Least <= 0 || r.P50 < r.Least || r.P90 < r.P50 || r.P99 < r.P90 || r.P999 < r.P99 || r.Most < r.P999 {
			t.Errorf("got %+v", r)
		}
	}
}

func TestRTTThroughALine(t *testing.T) {
	line := startLine(t, Line{To: startServer(t, "127.0.0.1:0"), Delay: 20 * time.Millisecond})
	r, err := RTT{To: line.Addr().String(), Every: 2 * time.Millisecond, Length: 200 * time.Millisecond}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Least < 40 || r.Lost != 0 || line.Result().Dropped != 0 {
		t.Errorf("got %+v through %+v", r, line.Result())
	}
}

// What a server that stops for a while keeps waiting is every probe of that time, not the one that found it so.
func TestRTTShowsAStallInAllProbes(t *testing.T) {
	const stall = 300 * time.Millisecond
	to := served(t, func(c *net.TCPConn) {
		b := make([]byte, 64)
		io.ReadFull(c, b[:1])
		c.Write(b[:1])
		io.ReadFull(c, b)
		time.Sleep(stall)
		c.Write(b)
		io.Copy(c, c)
	})
	r, err := RTT{To: to, Network: "tcp", Every: 5 * time.Millisecond, Length: 2 * stall}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Most < 300 || r.P90 < 200 || r.Lost != 0 { // half of the probes have waited, evenly from none to all of the stall
		t.Errorf("got %+v", r)
	}
}

func TestALostProbeTookAsLongAsWasWaited(t *testing.T) {
	server := udpSocket(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 100); ; {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if binary.BigEndian.Uint64(b)%4 != 0 {
				server.WriteToUDPAddrPort(b[:n], from)
				server.WriteToUDPAddrPort(b[:n], from) // a copy counts for nothing
				server.WriteToUDPAddrPort([]byte("nonsense"), from)
			}
		}
	}()
	r, err := RTT{To: portOf(server).String(), Every: time.Millisecond, Length: 100 * time.Millisecond, Wait: time.Second}.Run(context.Background())
	server.Close()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 100 || r.Lost != 25 || r.P90 != 1000 || r.P50 >= 1000 {
		t.Errorf("got %+v", r)
	}
}

func TestRTTFails(t *testing.T) {
	silent := udpSocket(t)
	for want, r := range map[string]RTT{
		"none of 10 probes": {To: portOf(silent).String(), Every: time.Millisecond, Length: 10 * time.Millisecond, Wait: 10 * time.Millisecond},
		"tcp or udp":        {Network: "icmp"},
		"possible":          {Size: 7},
		"at least one":      {Every: time.Second, Length: time.Millisecond},
		"an IP address":     {To: "x"},
	} {
		if _, err := r.Run(context.Background()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got error %v, want %q", r, err, want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		silent.Read(make([]byte, 100))
		cancel()
	}()
	if _, err := (RTT{To: portOf(silent).String(), Length: time.Hour}).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
}
