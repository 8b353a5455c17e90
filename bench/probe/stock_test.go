package probe

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/bench/iperf3"
	"culvert.dev/culvert/internal/testnet"
)

// stockServer runs iperf3 on loopback until the test ends.
func stockServer(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("iperf3")
	if err != nil {
		t.Skip("SKIP: iperf3 is not installed")
	}
	at := freeTarget(t)
	_, port, _ := net.SplitHostPort(at)
	cmd := exec.Command(program, "-s", "-B", "127.0.0.1", "-p", port, "--forceflush")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	read := make(chan struct{})
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-read
		cmd.Wait()
	})
	listens := false
	for !listens && lines.Scan() { // a connection would be a client to it
		listens = strings.Contains(lines.Text(), "Server listening on")
	}
	go func() {
		defer close(read)
		io.Copy(io.Discard, out)
	}()
	if !listens {
		t.Fatal("iperf3 does not listen")
	}
	return at
}

// freeTarget is an address on loopback that nothing uses, and the one of the echo beside it, which the kernel does not hand out either.
func freeTarget(t *testing.T) string {
	t.Helper()
	for range 200 {
		port := testnet.FreePort()
		if port == 0 || EchoPort(uint16(port)) >= 32768 {
			continue
		}
		at := "127.0.0.1:" + strconv.Itoa(int(EchoPort(uint16(port))))
		l, err := net.Listen("tcp", at)
		if err != nil {
			continue
		}
		l.Close()
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			continue
		}
		c.Close()
		return "127.0.0.1:" + strconv.Itoa(port)
	}
	t.Fatal("no port is free")
	return ""
}

// ourServer serves on loopback until the test ends.
func ourServer(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	listening := make(chan string, 1)
	ended := make(chan error, 1)
	address := freeTarget(t)
	go func() {
		ended <- Serve(ctx, ServerOrder{Address: address, MaxTime: time.Hour}, Way{Network: iperf3.Host{}}, slog.New(slog.DiscardHandler), func(e Event) error {
			if e.Event == EventListening {
				listening <- e.Text
			}
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	text := <-listening
	at, _, ok := strings.Cut(strings.TrimPrefix(text, "Server listening on "), ";")
	if !ok || !strings.Contains(text, "echo for --rtt and --connections on port") {
		t.Fatalf("listening: %s", text)
	}
	return at
}

// collect runs an order and returns what it tells.
func collect(t *testing.T, o Order, w Way) (d *Document, text string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err = Run(ctx, o, w, func(e Event) error {
		text += e.Text
		if e.Document != nil {
			d = e.Document
		}
		return nil
	})
	return d, text, err
}

// TestWithoutEchoes has nothing but connections tell round trips, with both kinds of server: only one that is held by a test denies
// them, and the test that follows is not disturbed.
func TestWithoutEchoes(t *testing.T) {
	for name, server := range map[string]func(*testing.T) string{"stock iperf3": stockServer, "our server": ourServer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Order{Params: iperf3.Params{Target: server(t), Time: time.Second, Rate: 100e6}}
			d, text, err := collect(t, Order{Params: o.Params, RTT: true}, Way{Network: deaf{}})
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			r := d.Culvert.RTT
			if r.Method != "tcp set-up" || r.Idle.Answered < 10 || r.Loaded.Answered < 2 || r.Idle.P50 <= 0 || d.End.SumReceived.Bytes < 1<<20 {
				t.Errorf("%+v, received %d bytes\n%s", r, d.End.SumReceived.Bytes, text)
			}
			o.Connections, o.Streams, o.Rate = true, 4, 0
			d, text, err = collect(t, o, Way{Network: deaf{}})
			if err != nil || d.Culvert.Connections.Total.Connections < 4 || d.Culvert.Connections.Total.Failed > 0 || d.Culvert.Connections.Target != o.Target {
				t.Errorf("%v\n%s", err, text)
			}
		})
	}
}

// deaf is the host's network without an answer to echoes.
type deaf struct{ iperf3.Host }

// DialContext implements iperf3.Network.
func (deaf) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, port, _ := net.SplitHostPort(address); network == "udp" && port != "" {
		return silence(), nil
	}
	return iperf3.Host{}.DialContext(ctx, network, address)
}

// silence is a connection from which nothing comes.
func silence() net.Conn {
	near, far := net.Pipe()
	go func() {
		b := make([]byte, 100)
		for {
			if _, err := far.Read(b); err != nil {
				return
			}
		}
	}()
	return near
}

// TestStockClient has iperf3 measure to our server.
func TestStockClient(t *testing.T) {
	program, err := exec.LookPath("iperf3")
	if err != nil {
		t.Skip("SKIP: iperf3 is not installed")
	}
	host, port, err := splitTarget(ourServer(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{"-n 32M", "-R -P 2 -n 32M", "-u -b 20M -t 1", "--bidir -t 1"} {
		args := append([]string{"-c", host, "-p", strconv.Itoa(int(port))}, strings.Fields(row)...)
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "iperf Done.") {
			t.Errorf("iperf3 %s: %v\n%s", row, err, out)
		}
	}
}

func TestEndOfListenerEndsTheRun(t *testing.T) {
	gone := errors.New("the listener has gone")
	o := Order{Params: iperf3.Params{Target: ourServer(t), Time: time.Minute, Interval: 100 * time.Millisecond}}
	began := time.Now()
	err := Run(t.Context(), o, Way{Network: iperf3.Host{}}, func(e Event) error {
		if e.Event == EventInterval {
			return gone
		}
		return nil
	})
	if err != gone || time.Since(began) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// TestInterruptedBeforeTheStart has a server that accepts connections and says nothing.
func TestInterruptedBeforeTheStart(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	o := Order{Params: iperf3.Params{Target: l.Addr().String()}}
	if err := Run(ctx, o, Way{Network: iperf3.Host{}}, func(Event) error { return nil }); !errors.Is(err, iperf3.ErrInterrupted) {
		t.Errorf("got %v", err)
	}
	o.Connections = true
	if err := Run(ctx, o, Way{Network: iperf3.Host{}}, func(Event) error { return nil }); err == nil {
		t.Error("no error")
	}
}
