//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/interop/stock"
)

const (
	rttMedian = "RTT p50 µs"
	rttTail   = "RTT p99 µs"
	added     = "added to a direct RTT, p50 µs"

	latencySize = 100                  // bytes of a packet
	latencyGap  = 2 * time.Millisecond // between an answer and the next packet, so that everything falls idle
)

// latency measures the time from one client to another and back, through a relay that does nothing else, and the same
// between two ends of one TLS connection.
func latency(ctx context.Context, s *server, o options) (figures, error) {
	clients, err := connectAll(ctx, s, 2)
	if err != nil {
		return nil, err
	}
	defer closeAll(clients)
	a, b := clients[0], clients[1]
	go b.receive(func(from wgkey.Public, packet []byte) { // ends when b is closed
		answer := frame(from, len(packet))
		stamp(answer, stampOf(packet))
		b.put(answer)
	})
	answers := make(chan struct{}, 1)
	go a.receive(func(wgkey.Public, []byte) { answers <- struct{}{} })
	question := frame(b.key, latencySize)
	relayed, err := pingPong(ctx, o.Pings, func() error { return a.put(question) }, answers)
	if err != nil {
		return nil, err
	}
	direct, err := directRTT(ctx, o.Pings)
	if err != nil {
		return nil, err
	}
	return figures{
		rttMedian: micros(quantile(relayed, 0.5)),
		rttTail:   micros(quantile(relayed, 0.99)),
		added:     micros(quantile(relayed, 0.5) - quantile(direct, 0.5)),
	}, nil
}

func pingPong(ctx context.Context, n int, ask func() error, answers <-chan struct{}) ([]time.Duration, error) {
	times := make([]time.Duration, 0, n)
	for range n {
		start := time.Now()
		if err := ask(); err != nil {
			return nil, err
		}
		select {
		case <-answers:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		times = append(times, time.Since(start))
		time.Sleep(latencyGap)
	}
	slices.Sort(times)
	return times, nil
}

// directRTT is the same exchange without a relay.
func directRTT(ctx context.Context, n int) ([]time.Duration, error) {
	cert, roots, err := stock.SelfSigned()
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	answers := make(chan struct{}, 1)
	go func() {
		b := make([]byte, latencySize)
		for {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			answers <- struct{}{}
		}
	}()
	question := make([]byte, latencySize)
	return pingPong(ctx, n, func() error { _, err := c.Write(question); return err }, answers)
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
