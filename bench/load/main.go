//go:build linux

package load

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// Main runs the command that args begin with, prints its result as a line of JSON on stdout, or an error on stderr, and
// returns the exit status. SIGTERM and SIGINT end the commands that wait; what these then have is their result, and no
// failure.
//
//	serve     -listen ADDR                               prints {"ready":true,"listen":ADDR}, serves until told to stop
//	flood     -to ADDR -direction up|down -size N -segments N -rate PPS -warmup D -length D
//	connrate  -to ADDR -workers N -no-echo -timeout D -warmup D -length D
//	hold      -to ADDR -network tcp|udp -flows N         prints {"ready":true,...}, waits, then {"held":N,"alive":N}
//	rtt       -to ADDR -network tcp|udp -every D -size N -wait D -warmup D -length D
//	line      -listen ADDR -to ADDR -delay D -queue N    prints {"ready":true,"listen":ADDR}, then what it has carried
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == "line" {
		hurry()
	}
	err := Run(ctx, args, os.Stdout)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 2
	default:
		fmt.Fprintf(os.Stderr, "load: %v\n", err)
		return 1
	}
}

// ready is what a command prints before it waits.
type ready struct {
	Ready  bool    `json:"ready"`
	Listen string  `json:"listen,omitempty"`
	Held   int     `json:"held,omitempty"`
	Took   float64 `json:"took_ms,omitempty"`
}

// Run is Main for a caller that has a context, whose end tells commands to stop, and a place for the output.
func Run(ctx context.Context, args []string, stdout io.Writer) error {
	commands := map[string]func(context.Context, *flag.FlagSet, []string, func(any) error) error{
		"serve": runServe, "flood": runFlood, "connrate": runConnRate, "hold": runHold, "rtt": runRTT, "line": runLine,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		return fmt.Errorf("%q: one of serve, flood, connrate, hold, rtt and line is needed", args)
	}
	fs := flag.NewFlagSet("load "+args[0], flag.ContinueOnError)
	return commands[args[0]](ctx, fs, args[1:], json.NewEncoder(stdout).Encode)
}

// parse reads the flags of a command that takes nothing else.
func parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%s: %q is one too many", fs.Name(), fs.Arg(0))
	}
	return nil
}

// printed prints the result of a generator.
func printed[T any](result T, err error) func(func(any) error) error {
	return func(print func(any) error) error {
		if err != nil {
			return err
		}
		return print(result)
	}
}

func runServe(ctx context.Context, fs *flag.FlagSet, args []string, print func(any) error) error {
	listen := fs.String("listen", "", "`ADDRESS` and port")
	if err := parse(fs, args); err != nil {
		return err
	}
	s, err := Listen(*listen)
	if err != nil {
		return err
	}
	if err := print(ready{Ready: true, Listen: s.Addr().String()}); err != nil {
		return err
	}
	return s.Serve(ctx)
}

func runFlood(ctx context.Context, fs *flag.FlagSet, args []string, print func(any) error) error {
	var f Flood
	fs.StringVar(&f.To, "to", "", "`ADDRESS` and port of a server")
	fs.StringVar((*string)(&f.Direction), "direction", string(Up), "up to the server, or down from it")
	fs.IntVar(&f.Size, "size", 0, "`BYTES` of a datagram")
	fs.IntVar(&f.Segments, "segments", 0, "datagrams in one message to the kernel")
	fs.Float64Var(&f.Rate, "rate", 0, "datagrams per second; 0: as many as will go")
	times(fs, &f.Warmup, &f.Length)
	if err := parse(fs, args); err != nil {
		return err
	}
	return printed(f.Run(ctx))(print)
}

func runConnRate(ctx context.Context, fs *flag.FlagSet, args []string, print func(any) error) error {
	var c ConnRate
	fs.StringVar(&c.To, "to", "", "`ADDRESS` and port of a server")
	fs.IntVar(&c.Workers, "workers", 0, "connect `N` at once")
	fs.BoolVar(&c.NoEcho, "no-echo", false, "end connections as soon as they are there")
	fs.DurationVar(&c.Timeout, "timeout", 0, "of one connection, to its end")
	times(fs, &c.Warmup, &c.Length)
	if err := parse(fs, args); err != nil {
		return err
	}
	return printed(c.Run(ctx))(print)
}

func runHold(ctx context.Context, fs *flag.FlagSet, args []string, print func(any) error) error {
	var h Hold
	fs.StringVar(&h.To, "to", "", "`ADDRESS` and port of a server")
	fs.StringVar(&h.Network, "network", "tcp", "tcp or udp")
	fs.IntVar(&h.Flows, "flows", 0, "open `N` flows")
	fs.DurationVar(&h.Timeout, "timeout", 0, "of one flow's answer")
	if err := parse(fs, args); err != nil {
		return err
	}
	start := time.Now()
	held, err := h.Open(ctx)
	if err != nil {
		return err
	}
	defer held.Close()
	if err := print(ready{Ready: true, Held: held.Len(), Took: millis(time.Since(start))}); err != nil {
		return err
	}
	<-ctx.Done()
	alive, err := held.Check(context.WithoutCancel(ctx))
	result := struct {
		Held  int    `json:"held"`
		Alive int    `json:"alive"` // have answered once more
		Error string `json:"error,omitempty"`
	}{Held: held.Len(), Alive: alive}
	if err != nil {
		result.Error = err.Error()
	}
	return print(result)
}

func runRTT(ctx context.Context, fs *flag.FlagSet, args []string, print func(any) error) error {
	var r RTT
	fs.StringVar(&r.To, "to", "", "`ADDRESS` and port of a server")
	fs.StringVar(&r.Network, "network", "udp", "tcp or udp")
	fs.DurationVar(&r.Every, "every", 0, "`TIME` between two probes")
	fs.IntVar(&r.Size, "size", 0, "`BYTES` of a probe")
	fs.DurationVar(&r.Wait, "wait", 0, "a probe that takes longer is lost")
	times(fs, &r.Warmup, &r.Length)
	if err := parse(fs, args); err != nil {
		return err
	}
	return printed(r.Run(ctx))(print)
}

func runLine(ctx context.Context, fs *flag.FlagSet, args []string, print func(any) error) error {
	var l Line
	fs.StringVar(&l.Listen, "listen", "", "`ADDRESS` and port for the client")
	fs.StringVar(&l.To, "to", "", "`ADDRESS` and port of the server")
	fs.DurationVar(&l.Delay, "delay", 40*time.Millisecond, "one way")
	fs.IntVar(&l.Queue, "queue", 0, "most `BYTES` under way in one direction")
	if err := parse(fs, args); err != nil {
		return err
	}
	r, err := l.Start()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := print(ready{Ready: true, Listen: r.Addr().String()}); err != nil {
		return err
	}
	<-ctx.Done()
	return print(r.Result())
}

func times(fs *flag.FlagSet, warmup, length *time.Duration) {
	fs.DurationVar(warmup, "warmup", 0, "`TIME` that goes before and does not count")
	fs.DurationVar(length, "length", 0, "`TIME` that counts")
}
