//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// bulk is a case of curl moving data.
type bulk struct {
	upload  bool
	streams int
}

func (b bulk) String() string {
	direction, s := "download", "s"
	if b.upload {
		direction = "upload"
	}
	if b.streams == 1 {
		s = ""
	}
	return fmt.Sprintf("%s, %d stream%s", direction, b.streams, s)
}

// uploadLen is the length of the file that is uploaded: nobody reaches its end.
const uploadLen = 1 << 42

// source makes a file of nothing but holes.
func source(tb lab.TB) string {
	tb.Helper()
	name := filepath.Join(tb.TempDir(), "zeros")
	f, err := os.Create(name)
	if err == nil {
		defer f.Close()
		err = f.Truncate(uploadLen)
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return name
}

// curl is the command of one stream. It runs until it is killed.
func (c *contender) curl(b bulk, file string) []string {
	args := []string{"curl", "-q", "-s", "-S", "-o", "/dev/null"}
	if c.proxied() {
		args = append(args, "-x", fmt.Sprintf("socks5://127.0.0.1:%d", proxyPort))
	}
	if b.upload {
		args = append(args, "-T", file, "-H", "Expect:")
	}
	return append(args, fmt.Sprintf("http://%s/", lab.Port(farMesh, bulkPort)))
}

// snapshot is where a measurement stands at one time.
type snapshot struct {
	time  time.Time
	bytes int64
	prog  time.Duration // processor time of the contender's program
	curl  time.Duration // of the clients
	far   time.Duration // of the far end's wireguard-go
}

func (w *world) bulk(tb lab.TB, c *contender, b bulk, file string, o options) figures {
	tb.Helper()
	var curls []*lab.Process
	for range b.streams {
		command := c.curl(b, file)
		p := c.host.Start(tb, nil, command[0], command[1:]...)
		if o.Pin {
			pin(tb, p.PID, clientCore)
		}
		curls = append(curls, p)
	}
	take := func() (s snapshot) {
		for _, p := range curls {
			s.curl += cpu(tb, p)
		}
		s.prog, s.far = cpu(tb, c.prog), cpu(tb, w.farProg)
		s.bytes, s.time = w.far.moved(), time.Now()
		return s
	}
	lab.WaitFor(tb, 10*time.Second, fmt.Sprintf("%s: %v", c.way, b), func() bool { return w.far.underWay() == b.streams && w.far.moved() > 0 })
	time.Sleep(o.Warmup)
	before := take()
	time.Sleep(o.Length)
	after := take()
	if w.far.underWay() != b.streams {
		tb.Fatalf("%s: %v: a stream has ended", c.way, b)
	}
	memory := c.memoryMB(tb)
	for _, p := range curls {
		p.Kill()
	}
	w.far.reset()
	lab.WaitFor(tb, 10*time.Second, "the streams to end", func() bool { return w.far.underWay() == 0 })
	return between(before, after, memory)
}

func between(a, b snapshot, memory float64) figures {
	bytes := float64(b.bytes - a.bytes)
	return figures{
		mbps:      bytes * 8 / b.time.Sub(a.time).Seconds() / 1e6,
		cpuPerGB:  (b.prog - a.prog).Seconds() / bytes * 1e9,
		cpuClient: (b.prog - a.prog + b.curl - a.curl).Seconds() / bytes * 1e9,
		cpuFar:    (b.far - a.far).Seconds() / bytes * 1e9,
		memoryMB:  memory,
	}
}
