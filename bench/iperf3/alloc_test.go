package iperf3

import (
	"net"
	"runtime"
	"testing"
	"time"
)

// counter is a connection that takes a number of writes and then ends.
type counter struct {
	net.Conn
	left int
}

func (c *counter) Write(b []byte) (int, error) {
	if c.left--; c.left < 0 {
		return 0, net.ErrClosed
	}
	return len(b), nil
}

// TestBlocksCostNoMemory: what is measured is the network, not the garbage collector.
func TestBlocksCostNoMemory(t *testing.T) {
	const blocks = 100_000
	for name, send := range map[string]func(*test, *stream) error{"TCP": (*test).sendTCP, "UDP": (*test).sendDatagrams} {
		run := newTest(Params{Protocol: "udp", Length: 100, Rate: 1e12}, true)
		run.fillPayload()
		c := &counter{left: blocks}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := send(run, &stream{id: 1, sender: true, conn: c, send: c.Write}); err == nil {
			t.Errorf("%s: no error", name)
		}
		runtime.ReadMemStats(&after)
		if n := after.Mallocs - before.Mallocs; n > blocks/100 {
			t.Errorf("%s: %d allocations for %d blocks", name, n, blocks)
		}
	}
}

func TestDatagramCostsNoMemory(t *testing.T) {
	run := newTest(Params{Protocol: "udp", Length: 100}, true)
	s, b := &stream{id: 1}, header{sent: time.Second, number: 1}.append(nil, true)
	if n := testing.AllocsPerRun(100, func() { run.datagram(s, b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSendDatagrams(b *testing.B) {
	run := newTest(Params{Protocol: "udp", Length: 1200}, true)
	run.fillPayload()
	c := &counter{left: b.N}
	b.ReportAllocs()
	run.sendDatagrams(&stream{id: 1, sender: true, send: c.Write})
}

func BenchmarkReceiveDatagram(b *testing.B) {
	run := newTest(Params{Protocol: "udp", Length: 1200}, true)
	s, d := &stream{id: 1}, header{number: 1}.append(make([]byte, 0, 1200), true)[:1200]
	b.ReportAllocs()
	for b.Loop() {
		run.datagram(s, d)
	}
}
