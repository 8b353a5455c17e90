package netstack

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// rulesPolicy is testPolicy with rules, from line 1 of "test.conf" on.
func rulesPolicy(t *testing.T, rules ...string) *filter.Policy {
	return testPolicy(t, func(c *filter.Config) {
		for i, text := range rules {
			r, err := filter.ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			r.File, r.Line = "test.conf", i+1
			c.Rules = append(c.Rules, r)
		}
	})
}

func TestRulesRejectOrDrop(t *testing.T) {
	n := newTestNet(t, rulesPolicy(t, "drop from * to * tcp/26", "reject from laptop to internet tcp/25", "reject from * to * udp"))
	w := newWire(n)
	for _, c := range []struct {
		name string
		pkt  []byte
		want uint8 // protocol of the answer; 0: none
	}{
		{"dropped TCP", tcpPacket(ap(peerV4, 5000), ap(outV4, 26), packet.TCPSyn, 1, 0), 0},
		{"rejected TCP", tcpPacket(ap(peerV4, 5000), ap(outV4, 25), packet.TCPSyn, 1, 0), packet.ProtoTCP},
		{"rejected TCP over IPv6", tcpPacket(ap(peerV6, 5000), ap(outV6, 25), packet.TCPSyn, 1, 0), packet.ProtoTCP},
		{"rejected UDP", udpPacket(ap(peerV4, 5000), ap(outV4, 53), 64, nil), packet.ProtoICMPv4},
		{"rejected UDP over IPv6", udpPacket(ap(peerV6, 5000), ap(outV6, 53), 64, nil), packet.ProtoICMPv6},
		{"rejected UDP to the node itself", udpPacket(ap(peerV4, 5000), ap(nodeV4, 53), 64, nil), packet.ProtoICMPv4},
	} {
		switch got := w.send(c.pkt); {
		case c.want == 0 && len(got) != 0:
			t.Errorf("%s: %d answers", c.name, len(got))
		case c.want != 0:
			if p := one(t, got); p.Proto != c.want {
				t.Errorf("%s: answered by protocol %d, want %d", c.name, p.Proto, c.want)
			}
		}
	}
	if d := n.Drops(); d["rule"] != 6 || n.table.Len() != 0 {
		t.Errorf("drops %v, %d flows", d, n.table.Len())
	}
}

func TestNewRuleCutsLiveFlows(t *testing.T) {
	host := hostAddr(t)
	cut := make(chan error, 1)
	to := listen(t, host, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		_, err := io.ReadAll(c)
		cut <- err
	})
	n := newTestNet(t, testPolicy(t, nil))
	c, err := newTestPeer(t, n).dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	n.SetPolicy(rulesPolicy(t, fmt.Sprintf("reject from * to * udp/%d", to.Port()), "accept from phone to *"))
	if f := n.Flows(); f.TCP != 1 {
		t.Fatalf("rules about others cut the flow: %+v", f)
	}
	n.SetPolicy(rulesPolicy(t, fmt.Sprintf("reject from laptop to %s tcp/%d", host, to.Port())))
	select {
	case err := <-cut:
		if err == nil {
			t.Error("the host side saw an orderly close, want a reset")
		}
	case <-time.After(3 * time.Second):
		t.Error("the host side is still connected")
	}
}

func TestFlowsOfLogRulesAreLogged(t *testing.T) {
	n := newTestNet(t, rulesPolicy(t, "reject log from * to * tcp/25", "accept log from * to self icmp", "reject from * to *"))
	var out bytes.Buffer
	n.log = slog.New(slog.NewTextHandler(&out, nil))
	w := newWire(n)
	w.send(tcpPacket(ap(peerV4, 5000), ap(outV4, 25), packet.TCPSyn, 1, 0))
	w.send(echoPacket(peerV6, nodeV6, 1, 1, nil))
	w.send(udpPacket(ap(peerV4, 5000), ap(outV4, 53), 64, nil))
	for _, want := range []string{
		"action=reject peer=laptop proto=tcp src=100.64.9.2:5000 dst=198.51.100.7:25 rule=test.conf:1 skipped=0",
		"action=accept peer=laptop proto=icmp",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line with %s in\n%s", want, &out)
		}
	}
	for range 100 {
		w.send(tcpPacket(ap(peerV4, 5000), ap(outV4, 25), packet.TCPSyn, 1, 0))
	}
	if lines := strings.Count(out.String(), "\n"); lines < 3 || lines > 40 || strings.Contains(out.String(), "proto=udp") {
		t.Errorf("%d lines for 103 flows:\n%s", lines, &out)
	}
}

func TestRuleLogRate(t *testing.T) {
	var l ruleLog
	count := func(now int64) (n int) {
		for range 100 {
			if l.take(now) {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		now  int64
		want int
	}{{0, 10}, {50e6, 0}, {100e6, 1}, {400e6, 3}, {60e9, 10}} {
		if got := count(c.now); got != c.want {
			t.Errorf("at %d ms: %d lines, want %d", c.now/1e6, got, c.want)
		}
	}
	if l.skipped.Load() != 500-24 {
		t.Errorf("%d skipped", l.skipped.Load())
	}
}
