package iperf3

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

// stock finds iperf3, or skips the test.
func stock(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("iperf3")
	if err != nil {
		t.Skip("iperf3 is not installed")
	}
	return path
}

// stockServer starts iperf3 as a server for one test.
func stockServer(t *testing.T) (address string, server *os.Process) {
	t.Helper()
	path := stock(t)
	port := testnet.FreePort()
	cmd := exec.Command(path, "-s", "-1", "-p", strconv.Itoa(port), "--forceflush")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	b, n := make([]byte, 4096), 0
	for !strings.Contains(string(b[:n]), "Server listening on") {
		m, err := out.Read(b[n:])
		if err != nil {
			t.Fatalf("iperf3 -s: %v: %s", err, b[:n])
		}
		n += m
	}
	go func() { // until it ends
		for {
			if _, err := out.Read(b); err != nil {
				return
			}
		}
	}()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), cmd.Process
}

func TestClientWithStockServer(t *testing.T) {
	stock(t)
	for name, p := range map[string]Params{
		"TCP":          {},
		"reverse":      {Reverse: true},
		"bidir":        {Bidir: true, Streams: 2},
		"streams":      {Streams: 4, Rate: 50e6, Length: 20000},
		"reverse rate": {Reverse: true, Streams: 3, Rate: 50e6, Length: 20000},
		"bytes":        {Bytes: 3_000_000, Rate: 50e6, Length: 20000}, // not faster than the server notices
		"blocks":       {Blocks: 100, Reverse: true},
		"omit":         {Omit: time.Second},
		"options":      {Window: 100_000, MSS: 1000, NoDelay: true, Congestion: "reno", ServerOutput: true, Title: "a title"},
		"UDP":          {Protocol: "udp", Rate: 10e6, Length: 1000},
		"UDP reverse":  {Protocol: "udp", Rate: 10e6, Length: 1000, Reverse: true},
		"UDP bidir":    {Protocol: "udp", Rate: 5e6, Length: 1000, Bidir: true, Streams: 2},
		"UDP 64 bits":  {Protocol: "udp", Rate: 10e6, Length: 100, UDPCounters64: true, ServerOutput: true},
		"UDP blocks":   {Protocol: "udp", Rate: 10e6, Length: 1000, Blocks: 500},
		"UDP omit":     {Protocol: "udp", Rate: 10e6, Length: 1000, Omit: time.Second, Reverse: true},
		"UDP flood":    {Protocol: "udp", Rate: Unlimited, Length: 64},
		"UDP large":    {Protocol: "udp", Rate: 100e6, Length: 60000, Window: 400_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if p.Bytes == 0 && p.Blocks == 0 {
				p.Time = short
			}
			p.Target, _ = stockServer(t)
			c := Client{Params: p}
			r, err := c.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			checkInterop(t, &p, r)
			if p.ServerOutput && !strings.Contains(r.ServerOutputText, "Accepted connection from") {
				t.Errorf("the server's output is %q", r.ServerOutputText)
			}
		})
	}
}

// checkInterop is for what is true of any test.
func checkInterop(t *testing.T, p *Params, r *Result) {
	t.Helper()
	if r.End.SumReceived.Bytes == 0 || r.End.SumSent.Bytes == 0 || r.End.CPU.RemoteTotal == 0 && r.End.CPU.HostTotal == 0 {
		t.Errorf("nothing is received: %+v", r.End)
	}
	if p.Bidir && (r.End.SumReceivedBidirReverse.Bytes == 0 || r.End.SumSentBidirReverse.Bytes == 0) {
		t.Errorf("nothing is received on the way back: %+v", r.End)
	}
	if p.Protocol != "udp" {
		if r.End.SumSent.Retransmits == nil || r.End.SenderCongestion == "" || r.End.ReceiverCongestion == "" {
			t.Errorf("the state of TCP is missing: %+v", r.End)
		}
		return
	}
	packets := r.End.Sum.Packets
	if packets == nil || r.End.Sum.Reception == nil {
		t.Fatalf("no packets are counted: %+v", r.End.Sum)
	}
	if p.Rate > 0 && p.Rate <= 10e6 && (r.End.Sum.LostPercent > 90 || r.End.Sum.Jitter <= 0) {
		t.Errorf("%d of %d packets are lost, jitter %v ms", r.End.Sum.Lost, *packets, r.End.Sum.Jitter)
	}
	if rate := float64(p.Rate) * float64(max(1, p.Streams)); p.Rate > 0 && p.Time > 0 && p.Omit == 0 && r.End.SumSent.BitsPerSecond > rate*1.3 {
		t.Errorf("%v bit/s are sent, want at most %v", r.End.SumSent.BitsPerSecond, rate)
	}
}

func TestStockClientWithServer(t *testing.T) {
	path := stock(t)
	for _, args := range []string{
		"-t 1", "-t 1 -R", "-t 1 --bidir -P 2", "-n 4M -P 4 -b 50M -l 20000", "-n 3M", "-k 100 -R", "-t 1 -O 1",
		"-n 3M -w 100K -M 1000 -N -C reno --get-server-output", "-n 10M -Z", "-n 10M --repeating-payload -T title", "-n 1M -b 100M/10 -l 1000",
		"-u -n 300K -b 10M -l 1000", "-u -n 300K -b 10M -l 1000 -R", "-u -t 1 -b 5M -l 1000 --bidir -P 2", "-u -k 1000 -b 10M -l 100 --udp-counters-64bit",
		"-u -k 500 -b 10M -l 1000", "-u -t 1 -b 10M -l 1000 -O 1", "-u -k 20000 -b 0 -l 64 -R", "-u -k 20 -b 100M -l 60000 -w 400K",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			s := serve(t, Server{})
			_, port, _ := net.SplitHostPort(s.address)
			list := append([]string{"-J", "-c", "127.0.0.1", "-p", port}, strings.Fields(args)...)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			b, err := exec.CommandContext(ctx, path, list...).Output()
			if err != nil {
				t.Fatalf("iperf3: %v: %s", err, b)
			}
			r, _ := parseResult(t, b)
			if r.Error != "" {
				t.Fatalf("iperf3: %s", r.Error)
			}
			if err := s.outcome(t); err != nil {
				t.Errorf("the server: %v", err)
			}
			for who, r := range map[string]*Result{"client": r, "server": s.last} {
				if r.End.SumReceived.Bytes == 0 || r.End.SumSent.Bytes == 0 {
					t.Errorf("the %s has nothing received: %+v", who, r.End)
				}
			}
			if near, far := s.last.End, r.End; strings.Contains(args, "-u") && (near.Sum.Lost != far.Sum.Lost || near.SumReceived.Bytes != far.SumReceived.Bytes) {
				t.Errorf("the ends do not agree: %+v %+v", near.Sum.Reception, far.Sum.Reception)
			}
			if strings.Contains(args, "--get-server-output") && !strings.Contains(r.ServerOutputText, "receiver") {
				t.Errorf("the server's output is %q", r.ServerOutputText)
			}
		})
	}
}

// TestStockClientIsToldWhy: iperf3 knows what the numbers of a refusal mean.
func TestStockClientIsToldWhy(t *testing.T) {
	t.Parallel()
	path := stock(t)
	s := serve(t, Server{MaxTime: 5 * time.Second})
	_, port, _ := net.SplitHostPort(s.address)
	out, err := exec.Command(path, "-c", "127.0.0.1", "-p", port, "-t", "6").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "test duration too long") {
		t.Errorf("%v: %s", err, out)
	}
	r := s.raw(t)
	r.until(testRunning, `{"tcp":true,"time":5}`)
	out, err = exec.Command(path, "-c", "127.0.0.1", "-p", port).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "the server is busy running a test") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestStockClientThatIsInterrupted sends CLIENT_TERMINATE.
func TestStockClientThatIsInterrupted(t *testing.T) {
	t.Parallel()
	path := stock(t)
	s := serve(t, Server{})
	_, port, _ := net.SplitHostPort(s.address)
	cmd := exec.Command(path, "-c", "127.0.0.1", "-p", port, "-t", "60", "-i", "0.1", "--forceflush")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	b, n := make([]byte, 4096), 0
	for !strings.Contains(string(b[:n]), " sec ") {
		m, err := out.Read(b[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	cmd.Process.Signal(os.Interrupt)
	if err := s.outcome(t); !errors.Is(err, ErrClientTerminated) {
		t.Errorf("got %v", err)
	}
	s.works(t)
}

// TestStockServerThatIsInterrupted sends SERVER_TERMINATE.
func TestStockServerThatIsInterrupted(t *testing.T) {
	t.Parallel()
	address, server := stockServer(t)
	c := Client{Params: Params{Target: address, Time: time.Minute, Interval: 100 * time.Millisecond}}
	c.OnInterval = func(Interval) { server.Signal(os.Interrupt) }
	if r, err := c.Run(t.Context()); !errors.Is(err, ErrServerTerminated) || r == nil || r.End.SumSent.Bytes == 0 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestStockServerThatDies says nothing.
func TestStockServerThatDies(t *testing.T) {
	t.Parallel()
	address, server := stockServer(t)
	c := Client{Params: Params{Target: address, Time: time.Minute, Interval: 100 * time.Millisecond}}
	c.OnInterval = func(Interval) { server.Kill() }
	if r, err := c.Run(t.Context()); err == nil || r == nil || r.Error == "" {
		t.Errorf("got %+v, %v", r, err)
	}
}
