//go:build linux

package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/bench/report"
)

// RTT sends probes at a fixed pace and takes the time until each comes back. It does not wait for one before it sends the
// next, and a probe that the socket would not take in time is as old as it ought to be: a stall shows in every probe that it
// concerned.
type RTT struct {
	To      string        // a Server's address and port
	Network string        // tcp or udp; zero: udp
	Every   time.Duration // zero: 5 ms
	Size    int           // bytes of a probe, at least RTTMinSize; zero: 64
	Warmup  time.Duration // probes of this time do not count
	Length  time.Duration // zero: 5 s
	Wait    time.Duration // a probe that takes longer is lost; zero: 2 s
}

// RTTMinSize is the length of the shortest probes.
const RTTMinSize = 8

// RTTResult are the times of the probes, in milliseconds. A lost one counts as one that took Wait.
type RTTResult struct {
	Network string  `json:"network"`
	Sent    int     `json:"sent"`
	Lost    int     `json:"lost"`
	Least   float64 `json:"least_ms"`
	P50     float64 `json:"p50_ms"`
	P90     float64 `json:"p90_ms"`
	P99     float64 `json:"p99_ms"`
	P999    float64 `json:"p999_ms"`
	Most    float64 `json:"most_ms"`
}

func (r RTT) withDefaults() (RTT, error) {
	if r.Network == "" {
		r.Network = "udp"
	}
	if r.Every == 0 {
		r.Every = 5 * time.Millisecond
	}
	if r.Size == 0 {
		r.Size = 64
	}
	if r.Length == 0 {
		r.Length = 5 * time.Second
	}
	if r.Wait == 0 {
		r.Wait = 2 * time.Second
	}
	const most = 1400 // one datagram, and one segment
	switch {
	case r.Network != "tcp" && r.Network != "udp":
		return r, fmt.Errorf("rtt: network %q: it is tcp or udp", r.Network)
	case r.Size < RTTMinSize || r.Size > most:
		return r, fmt.Errorf("rtt: probes of %d bytes: %d to %d are possible", r.Size, RTTMinSize, most)
	case r.Every < 0 || r.Warmup < 0 || r.Length < r.Every || r.Wait < 0:
		return r, errors.New("rtt: times are not negative, and there is at least one probe")
	}
	return r, nil
}

// Run probes for Warmup and Length, and waits for what is under way. That no probe came back is an error.
func (r RTT) Run(ctx context.Context) (result RTTResult, err error) {
	if r, err = r.withDefaults(); err != nil {
		return result, err
	}
	to, err := target(r.To)
	if err != nil {
		return result, err
	}
	conn, err := r.dial(ctx, to)
	if err != nil {
		return result, fmt.Errorf("rtt: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	p := &prober{
		spec: r, conn: conn,
		sent:  make([]atomic.Int64, (r.Warmup+r.Length)/r.Every),
		taken: make([]time.Duration, (r.Warmup+r.Length)/r.Every),
		start: time.Now(),
	}
	sending := make(chan error, 1)
	go func() { sending <- p.send(ctx) }()
	got := p.receive()
	if err := errors.Join(<-sending, ctx.Err()); err != nil {
		return result, fmt.Errorf("rtt %v: %w", to, err)
	}
	if result = p.result(); result.Lost == result.Sent {
		return result, fmt.Errorf("rtt %v: none of %d probes came back: %w", to, result.Sent, got)
	}
	return result, nil
}

func (r RTT) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if r.Network == "udp" {
		var d net.Dialer
		return d.DialContext(ctx, "udp", to.String())
	}
	conn, err := dialService(ctx, to, echoService)
	if err != nil {
		return nil, err
	}
	conn.SetReadDeadline(time.Now().Add(talkLimit))
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// prober is a measurement under way: one goroutine sends while another receives.
type prober struct {
	spec  RTT
	conn  net.Conn
	start time.Time
	sent  []atomic.Int64  // of each probe, after the start: when it went, or ought to have gone; 0 before
	taken []time.Duration // of each that has come back; 0 of others
}

func (p *prober) send(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	probe := make([]byte, p.spec.Size)
	var free time.Duration // when the socket had taken the one before
	p.conn.SetWriteDeadline(p.start.Add(time.Duration(len(p.sent))*p.spec.Every + p.spec.Wait))
	for i := range p.sent {
		due := time.Duration(i) * p.spec.Every
		for time.Since(p.start) < due && ctx.Err() == nil {
			sleepUntil(p.start.Add(due))
		}
		stamp := time.Since(p.start)
		if free > due { // it is not this machine's clock that was late
			stamp = due
		}
		p.sent[i].Store(int64(max(stamp, 1)))
		binary.BigEndian.PutUint64(probe, uint64(i))
		if _, err := p.conn.Write(probe); err != nil && !(p.spec.Network == "udp" && passing(err)) {
			return err
		}
		free = time.Since(p.start)
	}
	return nil
}

// receive takes probes until all are back or the last has been waited for. The error says why it ended, nil if all came.
func (p *prober) receive() error {
	p.conn.SetReadDeadline(p.start.Add(time.Duration(len(p.sent))*p.spec.Every + p.spec.Wait))
	b := make([]byte, p.spec.Size)
	for left := len(p.sent); left > 0; {
		n, err := p.read(b)
		now := time.Since(p.start)
		if err != nil {
			if p.spec.Network == "udp" && passing(err) {
				continue
			}
			return err
		}
		i := binary.BigEndian.Uint64(b)
		if n != p.spec.Size || i >= uint64(len(p.sent)) || p.taken[i] != 0 {
			continue
		}
		if stamp := p.sent[i].Load(); stamp != 0 {
			p.taken[i] = max(now-time.Duration(stamp), 1)
			left--
		}
	}
	return nil
}

func (p *prober) read(b []byte) (n int, err error) {
	if p.spec.Network == "tcp" {
		return io.ReadFull(p.conn, b)
	}
	clear(b[:RTTMinSize])
	return p.conn.Read(b)
}

func (p *prober) result() RTTResult {
	counted := p.taken[p.spec.Warmup/p.spec.Every:]
	r := RTTResult{Network: p.spec.Network, Sent: len(counted)}
	times := make([]time.Duration, 0, len(counted))
	for _, t := range counted {
		if t == 0 || t > p.spec.Wait {
			r.Lost++
			t = p.spec.Wait
		}
		times = append(times, t)
	}
	for i, v := range report.Percentiles(times, 0, 50, 90, 99, 99.9, 100) {
		*[]*float64{&r.Least, &r.P50, &r.P90, &r.P99, &r.P999, &r.Most}[i] = millis(v)
	}
	return r
}
