package main

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/bench/iperf3"
)

func benchBool(name, short, usage string) cli.Flag {
	f := boolFlag(name, usage).(*cli.BoolFlag)
	f.Aliases = []string{short}
	return f
}

// benchParamFlags are iperf3's options of a client that have a meaning here.
func benchParamFlags() []cli.Flag {
	value := func(name, usage, def string, aliases ...string) cli.Flag {
		env := "CULVERT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		return &cli.StringFlag{Name: name, Aliases: aliases, EnvVars: []string{env}, Usage: usage, DefaultText: def}
	}
	return []cli.Flag{
		benchBool("reverse", "R", "the server sends"),
		boolFlag("bidir", "both send"),
		value("parallel", "`N` streams, 1 to 128", "1", "P"),
		benchBool("udp", "u", "UDP instead of TCP"),
		value("bitrate", "send `RATE` bit/s at most on each stream, with K, M or G; 0 for no limit; RATE/BURST sends so many blocks at a time", "no limit; UDP 1M", "b", "bandwidth"),
		value("time", "`SECONDS` to send", "10", "t"),
		value("bytes", "bytes to send, instead of a time: `N` with K, M or G of 1024", "", "n"),
		value("blockcount", "blocks to send, instead of a time: `N` with K, M or G", "", "k"),
		value("length", "bytes of a block, which is a write or a datagram: `N` with K", "128K; UDP what fits", "l", "len"),
		value("omit", "leave out the first `SECONDS`", "0", "O"),
		value("interval", "`SECONDS` between lines, 0.1 to 60; 0 for none", "1", "i"),
		value("window", "bytes of the socket's buffers, plain only: `N` with K or M", "", "w"),
		value("set-mss", "maximum segment size, plain only: `N`", "", "M"),
		benchBool("no-delay", "N", "no Nagle algorithm, plain only"),
		value("congestion", "congestion control `ALGORITHM`, plain only", "", "C"),
		value("tos", "type of service, plain only: `N`", "0", "S"),
		value("title", "a `TEXT` for the JSON document", "", "T"),
		boolFlag("get-server-output", "show what the server has printed too"),
		boolFlag("udp-counters-64bit", "number datagrams with 64 bits"),
	}
}

// benchParams reads the options. Whether they go together is for package iperf3.
func benchParams(c *cli.Context) (p iperf3.Params, err error) {
	p = iperf3.Params{
		Reverse: c.Bool("reverse"), Bidir: c.Bool("bidir"), NoDelay: c.Bool("no-delay"), Congestion: c.String("congestion"), Title: c.String("title"),
		ServerOutput: c.Bool("get-server-output"), UDPCounters64: c.Bool("udp-counters-64bit"),
	}
	if c.Bool("udp") {
		p.Protocol = "udp"
	}
	switch {
	case p.Reverse && p.Bidir:
		return p, usagef("--reverse and --bidir exclude each other; see %s --help", c.Command.HelpName)
	case c.Bool("connections") && (p.Protocol == "udp" || p.Reverse || p.Bidir || c.IsSet("bytes") || c.IsSet("blockcount")):
		return p, usagef("--connections goes with -P, -t and -i only; see %s --help", c.Command.HelpName)
	}
	numbers := []struct {
		option      string
		unit        float64
		least, most float64
		set         func(n int64)
	}{
		{"parallel", 1, 1, 128, func(n int64) { p.Streams = int(n) }},
		{"bytes", 1024, 1, 1 << 54, func(n int64) { p.Bytes = n }},
		{"blockcount", 1024, 1, 1 << 34, func(n int64) { p.Blocks = n }},
		{"length", 1024, 1, 1 << 20, func(n int64) { p.Length = int(n) }},
		{"window", 1024, 1, 512 << 20, func(n int64) { p.Window = int(n) }},
		{"set-mss", 1, 1, 9 << 10, func(n int64) { p.MSS = int(n) }},
		{"tos", 1, 0, 255, func(n int64) { p.TOS = int(n) }},
	}
	for _, o := range numbers {
		if !c.IsSet(o.option) {
			continue
		}
		n, ok := amount(c.String(o.option), o.unit)
		if !ok || n < o.least || n > o.most {
			return p, usagef("--%s: %q is no number from %.0f to %.0f; see %s --help", o.option, c.String(o.option), o.least, o.most, c.Command.HelpName)
		}
		o.set(int64(n))
	}
	if err := benchRate(c, &p); err != nil {
		return p, err
	}
	return p, benchTimes(c, &p)
}

func benchRate(c *cli.Context, p *iperf3.Params) error {
	if !c.IsSet("bitrate") {
		return nil
	}
	text, burst, hasBurst := strings.Cut(c.String("bitrate"), "/")
	rate, ok := amount(text, 1000)
	if hasBurst && ok {
		p.Burst, _ = strconv.Atoi(burst)
		ok = p.Burst >= 1 && p.Burst <= 1000
	}
	if !ok || rate > 1e15 {
		return usagef("--bitrate: %q is no rate such as 100M, or 100M/8; see %s --help", c.String("bitrate"), c.Command.HelpName)
	}
	if p.Rate = int64(rate); p.Rate == 0 {
		p.Rate = iperf3.Unlimited
	}
	return nil
}

func benchTimes(c *cli.Context, p *iperf3.Params) error {
	for _, o := range []struct {
		option      string
		least, most time.Duration
		to          *time.Duration
	}{
		{"time", time.Second, 24 * time.Hour, &p.Time},
		{"omit", 0, 10 * time.Minute, &p.Omit},
		{"interval", 100 * time.Millisecond, time.Minute, &p.Interval},
	} {
		if !c.IsSet(o.option) {
			continue
		}
		d, err := time.ParseDuration(c.String(o.option))
		if f, bad := strconv.ParseFloat(c.String(o.option), 64); bad == nil {
			d, err = time.Duration(min(f, 1e9)*float64(time.Second)), nil
		}
		if o.option == "interval" && d == 0 && err == nil {
			p.Interval = -1
			continue
		}
		if err != nil || d < o.least || d > o.most {
			return usagef("--%s: %q is no time from %v to %v; see %s --help", o.option, c.String(o.option), o.least, o.most, c.Command.HelpName)
		}
		*o.to = d
	}
	return nil
}

// amount reads a number with a letter for a power of unit, 1000 or 1024; 1 means that there is no letter.
func amount(s string, unit float64) (n float64, ok bool) {
	power := 0
	if unit > 1 && s != "" {
		if power = strings.IndexByte("KMGT", s[len(s)-1]&^0x20) + 1; power > 0 {
			s = s[:len(s)-1]
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	return n * math.Pow(unit, float64(power)), err == nil && n >= 0 && !math.IsInf(n, 0)
}
