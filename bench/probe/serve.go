package probe

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"

	"culvert.dev/culvert/bench/iperf3"
	"culvert.dev/culvert/internal/stream"
)

// Serve runs a server with the echo beside it, until ctx ends, or OneOff's test has. It emits an EventListening, and for each test what
// Run does, or an EventFailure in the end. That the echo's port is taken is told and no error. An error of emit ends it too.
func Serve(ctx context.Context, o ServerOrder, w Way, log *slog.Logger, emit func(Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &run{way: w, emit: emit, cancel: func(error) { cancel() }}
	var echoes echoes
	s := iperf3.Server{
		Network: w.Network, Address: o.Address, OneOff: o.OneOff, MaxTime: o.MaxTime, Logger: log,
		OnListen: func(at net.Addr) {
			told := echoes.start(ctx, w, at, log)
			r.tell(EventListening, fmt.Sprintf("Server listening on %s; %s\n", at, told), nil)
		},
		OnStart:    func(s iperf3.Start) { r.tell(EventStart, text(s.Text), nil) },
		OnInterval: func(i iperf3.Interval) { r.tell(EventInterval, text(i.Text), nil) },
		OnResult: func(result *iperf3.Result, err error) {
			if result != nil {
				r.tell(EventResult, text(result.Summary), &Document{Result: result})
			}
			if err != nil {
				r.tell(EventFailure, fmt.Sprintf("the test has ended early: %v\n", err), nil)
			}
		},
	}
	err := s.Serve(ctx)
	echoes.close()
	if r.emitError != nil {
		return r.emitError
	}
	return err
}

// echoes are what stands beside a server: a UDP port that gives requests back, and a TCP port of the same number that gives every
// connection one byte and closes it.
type echoes struct {
	sockets  []net.PacketConn
	counters []*stream.Server
	serving  sync.WaitGroup
}

// maxAnswering is how many connections are answered at once. It takes a moment each.
const maxAnswering = 256

// start opens the echo beside a listener, and says where.
func (e *echoes) start(ctx context.Context, w Way, at net.Addr, log *slog.Logger) string {
	host, port, err := splitTarget(at.String())
	if err != nil {
		return "no echo: " + err.Error()
	}
	hosts := w.Hosts
	if len(hosts) == 0 {
		hosts = []string{host}
	}
	port = EchoPort(port)
	for _, h := range hosts {
		if err := e.open(ctx, w, net.JoinHostPort(h, strconv.Itoa(int(port))), log); err != nil {
			e.close()
			return fmt.Sprintf("no echo for --rtt and --connections: %v", err)
		}
	}
	return fmt.Sprintf("echo for --rtt and --connections on port %d", port)
}

func (e *echoes) open(ctx context.Context, w Way, at string, log *slog.Logger) error {
	c, err := w.Network.ListenPacket(ctx, "udp", at)
	if err != nil {
		return err
	}
	e.sockets = append(e.sockets, c)
	e.serving.Go(func() { answerEchoes(c) })
	l, err := w.Network.Listen(ctx, "tcp", at)
	if err != nil {
		return err
	}
	counter := stream.NewServer(stream.ServerConfig{Name: "bench echo " + at, Max: maxAnswering, MaxPerClient: maxAnswering, Logger: log, Handle: func(_ context.Context, c net.Conn) {
		c.Write([]byte{denial})
		c.Close()
	}})
	e.counters = append(e.counters, counter)
	e.serving.Go(func() { counter.Serve(l) })
	return nil
}

func (e *echoes) close() {
	for _, c := range e.sockets {
		c.Close()
	}
	for _, c := range e.counters {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		c.Shutdown(now)
	}
	e.serving.Wait()
	e.sockets, e.counters = nil, nil
}

// text is what a function of package iperf3 writes.
func text(write func(io.Writer) error) string {
	var b strings.Builder
	write(&b) // a strings.Builder takes all
	return b.String()
}
