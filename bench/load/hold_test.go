//go:build linux

package load

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func TestHoldKeepsFlows(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		s, err := Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- s.Serve(ctx) }()
		const flows = 50
		held, err := Hold{To: s.Addr().String(), Network: network, Flows: flows, Timeout: 5 * time.Second}.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if n, err := held.Check(context.Background()); n != flows || held.Len() != flows || err != nil {
				t.Errorf("%s: %d of %d answer: %v", network, n, held.Len(), err)
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		held.hold.Timeout = 100 * time.Millisecond
		if n, err := held.Check(context.Background()); n != 0 || err == nil {
			t.Errorf("%s: %d flows answer without a server, %v", network, n, err)
		}
		held.Close()
	}
}

func TestHoldAsksAgainWhereADatagramIsLost(t *testing.T) {
	server := udpSocket(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		heard := map[string]bool{}
		for b := make([]byte, 100); ; {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if heard[from.String()] {
				server.WriteToUDPAddrPort([]byte("another answer"), from)
				server.WriteToUDPAddrPort(b[:n], from)
			}
			heard[from.String()] = true
		}
	}()
	held, err := Hold{To: portOf(server).String(), Network: "udp", Flows: 20}.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	held.Close()
	server.Close()
	<-done
}

func TestHoldOpensAllOrNothing(t *testing.T) {
	silent := udpSocket(t)
	for want, h := range map[string]Hold{
		"0 of 3 flows":  {To: portOf(silent).String(), Network: "udp", Flows: 3, Timeout: time.Millisecond},
		"0 of 1 flows":  {To: served(t, func(c *net.TCPConn) { c.SetLinger(0) }), Flows: 1},
		"another one":   {To: served(t, func(c *net.TCPConn) { c.Write([]byte("eabcdefghijklmnop")); c.Read(make([]byte, 100)) }), Flows: 1},
		"tcp or udp":    {To: "127.0.0.1:1", Network: "icmp"},
		"an IP address": {To: "x"},
	} {
		held, err := h.Open(context.Background())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got error %v, want %q", h, err, want)
		}
		if held != nil {
			held.Close()
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (Hold{To: portOf(silent).String()}).Open(ctx); err == nil {
		t.Error("flows are opened after the end")
	}
}
