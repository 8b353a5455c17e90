//go:build linux

package main

import (
	"strconv"
	"time"

	loadgen "culvert.dev/culvert/bench/load"
	"culvert.dev/culvert/internal/lab"
)

// distance is the delay of one way between client and exit. It lies on the WireGuard path, so that both ends of the tunnel, and
// for the reference both ends of the TCP connection, see the round trip; from the exit to the server there is none.
const distance = 40 * time.Millisecond

// The line stands on a machine d of its own, between c and x.
const (
	linePort  = 51821
	lineFront = "10.0.9.1"
	lineToX   = "10.0.8.1" // the exit's address there
)

// wireLine adds the machine of the line to the world.
func (c *contender) wireLine() {
	if c.line == nil {
		c.line = c.Node("d")
		c.Wire(c.C, c.line, lab.Addrs("10.0.9.2/24"), lab.Addrs(lineFront+"/24"))
		c.Wire(c.line, c.X, lab.Addrs("10.0.8.2/24"), lab.Addrs(lineToX+"/24"))
	}
}

// distant is one TCP stream at a distance.
func (c *contender) distant(tb lab.TB, d direction) values {
	tb.Helper()
	c.wireLine()
	line := c.line.Start(tb, nil, self(tb), loadCommand, "line", "-listen", lab.Port(lineFront, linePort),
		"-to", lab.Port(lineToX, lab.ExitPort), "-delay", distance.String())
	ready(tb, line)
	c.endpoint(tb, lab.Port(lineFront, linePort))
	defer func() {
		c.endpoint(tb, lab.Port(lab.ExitToC[0], lab.ExitPort))
		lab.WaitFor(tb, 20*time.Second, c.name+" to be near again", func() bool { return c.roundTrip(tb) < distance })
	}()
	if r := c.roundTrip(tb); r < 2*distance {
		tb.Fatalf("%s: the round trip is %v, which is not that of the line", c.name, r)
	}
	v := c.tcp(tb, d, 1)
	delete(v, cpuPerGB) // of a run that is mostly the beginning of a connection
	if err := line.Stop(10 * time.Second); err != nil {
		tb.Fatalf("the line: %v: %s", err, line.Log())
	}
	var carried loadgen.LineResult
	if err := lastLine(line.Log(), &carried); err != nil {
		tb.Fatalf("the line: %v", err)
	}
	if carried.Up.Bytes == 0 || carried.Down.Bytes == 0 {
		tb.Fatalf("%s: the tunnel did not go by the line: %+v", c.name, carried)
	}
	const late = 10 // ms
	if most := max(carried.Up.LateMost, carried.Down.LateMost); most > late {
		c.remark("The machine had no time for the line now and then: the delay was more than %v.", distance)
	}
	v[lost] = float64(carried.Dropped)
	return v
}

// endpoint tells the client where the exit is. The exit follows by itself.
func (c *contender) endpoint(tb lab.TB, at string) {
	tb.Helper()
	c.C.Run(tb, "wg", "set", c.client.Dev, "peer", c.key, "endpoint", at)
}

// roundTrip is the median of a few probes.
func (c *contender) roundTrip(tb lab.TB) time.Duration {
	tb.Helper()
	var r loadgen.RTTResult
	c.generate(tb, &r, "rtt", "-every", (10 * time.Millisecond).String(), "-warmup", (2 * distance).String(), "-length", "200ms")
	d, err := time.ParseDuration(strconv.FormatFloat(r.P50, 'f', -1, 64) + "ms")
	if err != nil {
		tb.Fatalf("%s: %v", c.name, err)
	}
	return d
}
