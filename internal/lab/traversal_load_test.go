//go:build linux

package lab_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
)

// Load runs from a client with stock WireGuard beside a, through both nodes, to a server beside b:
//
//	c ── a1 ~~ b1 ── s
const (
	loadClient = "10.99.1.3" // of c, in the mesh
	loadServer = "10.3.0.10"
)

// loaded makes c and s and starts everything. c's tunnel is up when it returns.
func (p *pair) loaded(t *testing.T) (c, s *lab.Node) {
	t.Helper()
	c, s = p.Node("c"), p.Node("s")
	p.Wire(c, p.a.Host, lab.Addrs("10.1.0.2/24"), lab.Addrs("10.1.0.1/24"))
	p.Wire(s, p.b.Host, lab.Addrs(loadServer+"/24"), lab.Addrs("10.3.0.1/24"))
	key := p.Key()
	const transit = "AllowInbound = yes\nAllowRouting = yes\nAllowLAN = yes\n"
	p.a.Port = 51820
	p.a.Peer(lab.ExitPeer{Name: p.b.Name, Key: p.b.Key.Public(), AllowedIPs: p.b.Addr + "/32, 10.3.0.0/24", Options: transit})
	p.a.Peer(lab.ExitPeer{Name: "c", Key: key.Public(), AllowedIPs: loadClient + "/32", Options: transit + "AllowPeers = " + p.b.Name + "\n"})
	p.b.Peer(lab.ExitPeer{Name: p.a.Name, Key: p.a.Key.Public(), AllowedIPs: p.a.Addr + "/32, " + loadClient + "/32", Options: transit})
	p.start(t)
	c.Stock(t, lab.Tunnel{
		Key: key, Addrs: []string{loadClient + "/32"},
		Peers: []lab.TunnelPeer{{Key: p.a.Key.Public(), AllowedIPs: p.a.Addr + "/32, " + p.b.Addr + "/32, 10.3.0.0/24", Endpoint: "10.1.0.1:51820"}},
	})
	lab.WaitFor(t, 20*time.Second, "an echo from the far node", func() bool { return echoes(c, p.b.Addr) })
	return c, s
}

// second is what a receiver says of one second of a load.
type second struct{ lost, all int }

var iperfSecond = regexp.MustCompile(`(?m)^\[ *\d+\] +[\d.]+-[\d.]+ +sec .* (\d+)/(\d+) \([^)]*\) *$`)

// udpLoad sends 50 Mbit/s of UDP from c to s for a time and returns what the receiver says, by seconds.
func udpLoad(t *testing.T, c *lab.Node, during time.Duration) (list []second) {
	t.Helper()
	out, err := c.Exec("", "iperf3", "-c", loadServer, "-u", "-b", "50M", "-l", "1200", "-w", "2M", "-t", fmt.Sprint(int(during.Seconds())), "--json", "--get-server-output")
	var r struct {
		Error  string
		Server string `json:"server_output_text"`
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	if err != nil || r.Error != "" {
		t.Errorf("iperf3: %v %s", err, r.Error)
		return nil
	}
	for _, m := range iperfSecond.FindAllStringSubmatch(r.Server, -1) {
		var s second
		s.lost, _ = strconv.Atoi(m[1])
		s.all, _ = strconv.Atoi(m[2])
		list = append(list, s)
	}
	if len(list) == 0 {
		t.Errorf("iperf3 says nothing of any second: %s", r.Server)
	}
	return list
}

// total adds up some seconds.
func total(list []second) (sum second) {
	for _, s := range list {
		sum.lost += s.lost
		sum.all += s.all
	}
	return sum
}

// TestUpgradeLosesNothing moves 50 Mbit/s of UDP from the relay to a direct path. A machine that is too busy loses datagrams
// in its queues whatever the path, so that only the seconds around the move count, and one move of some without loss will do.
func TestUpgradeLosesNothing(t *testing.T) {
	t.Parallel()
	lab.Need(t, "iperf3")
	const tries, during = 4, 16 * time.Second
	p := plainPair(t, testnet.PRC, testnet.PRC)
	p.Cut(p.siteA, p.siteB)
	c, s := p.loaded(t)
	iperfServer(t, s, 5201)
	e := p.echoTrain(t) // so that each cut is noticed at once
	defer e.stop()
	least := -1
	for range tries {
		p.bothBecome(t, "relay", 30*time.Second)
		began := time.Now()
		done := make(chan []second, 1)
		go func() { done <- udpLoad(t, c, during) }()
		time.Sleep(3 * time.Second) // let the load run by relay
		p.Mend()
		mended := time.Now()
		p.bothBecome(t, "direct", 30*time.Second)
		moved := time.Since(began)
		list := <-done
		if t.Failed() {
			return
		}
		at := int(moved.Seconds())
		if at+2 > len(list) {
			t.Logf("direct %v after it was possible: too late for the load", time.Since(mended))
			p.Cut(p.siteA, p.siteB)
			continue
		}
		around := total(list[max(at-1, 0) : at+2])
		before, after := total(list[:max(at-1, 0)]), total(list[at+2:])
		t.Logf("direct %s after it was possible: %d of %d datagrams lost around the move; %d of %d before, %d of %d after",
			ms(moved-mended.Sub(began)), around.lost, around.all, before.lost, before.all, after.lost, after.all)
		if least < 0 || around.lost < least {
			least = around.lost
		}
		if least == 0 {
			break
		}
		p.Cut(p.siteA, p.siteB)
	}
	if least != 0 && !lab.Racing() {
		t.Errorf("datagrams lost in every move, at least %d", least)
	}
}
