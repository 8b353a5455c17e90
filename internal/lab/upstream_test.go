//go:build linux

package lab_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/wgkey"
)

// Addresses of an upstream: a hub on the internet, which masquerades what comes out of its tunnel.
var (
	hubOuter  = [2]string{"198.51.104.10", "2001:db8:104::10"} // of the hub, on the internet
	hubTunnel = [2]string{"10.64.0.1", "fc00:bbbb::1"}         // of the hub, in the tunnel; its resolver too
	upstream  = [2]string{"10.64.3.2", "fc00:bbbb::3:2"}       // of the exit, in the tunnel
)

const hubPort = 51821

// hubWorld is an Internet whose exit has an upstream: client c uses it, client p does not.
//
//	c ─┐                       ┌─ s
//	   x ── r ── h             │   what c does passes x, r, h, r
//	p ─┘    └──────────────────┴─ m
type hubWorld struct {
	*world
	H     *lab.Node
	hub   wgkey.Private
	own   wgkey.Private // of the exit, in the upstream
	file  string        // the upstream's
	names *nameserver   // of the hub
	host  *nameserver   // of the exit's host
}

// newHubWorld starts everything but the hub's tunnel.
func newHubWorld(t *testing.T) *hubWorld {
	t.Helper()
	w := &hubWorld{world: &world{Internet: lab.NewInternet(t)}}
	w.H = w.Net.Node("h")
	w.Net.Wire(w.R, w.H, lab.Addrs("198.51.104.1/24", "2001:db8:104::1/64"), lab.Addrs(hubOuter[0]+"/24", hubOuter[1]+"/64"))
	w.H.Route("default", "198.51.104.1")
	w.H.Route("default", "2001:db8:104::1")
	w.H.Addr("lo", hubTunnel[0]+"/32")
	w.H.Addr("lo", hubTunnel[1]+"/128")
	w.H.Masquerade("r")
	w.H.Nft(`table inet clamp {
		chain forward {
			type filter hook forward priority mangle;
			tcp flags syn tcp option maxseg size set rt mtu
		}
	}`)
	w.hub, w.own = w.Net.Key(), w.Net.Key()
	w.names = newNameserver(t, w.H, hubTunnel[:]...)
	w.host = newNameserver(t, w.S, lab.NameServer[0])
	for _, s := range []*nameserver{w.names, w.host} {
		s.set("www.example.", lab.Server[:]...)
	}
	w.names.texts["long.example."] = strings.Repeat("0123456789", 300)
	w.X.Resolver(lab.NameServer[0])

	w.file = filepath.Join(lab.UnprivilegedDir(t), "hub.conf")
	w.writeFile(t, "")
	w.keys = w.Keys()
	w.config = w.ExitConfig(w.keys, "AllowRouting = yes", "AllowRouting = yes")
	w.config.Extra = "[Upstream]\nFile = " + w.file + "\nPeers = c\n"
	w.X.Nft(leakTable)
	w.exit = w.X.StartExit(t, lab.ExitCulvert, w.config)
	w.client = w.StockClient(t, w.C, w.keys.C, w.exit.Key)
	w.connect(t, w.C)
	return w
}

// writeFile writes the upstream's file as a provider would.
func (w *hubWorld) writeFile(t *testing.T, more string) {
	t.Helper()
	text := fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = %s/32,%s/128\nDNS = %s, example\n%s"+
		"[Peer]\nPublicKey = %s\nAllowedIPs = 0.0.0.0/0,::0/0\nEndpoint = %s\n",
		w.own.Reveal(), upstream[0], upstream[1], hubTunnel[0], more, w.hub.Public(), lab.Port(hubOuter[0], hubPort))
	if err := os.WriteFile(w.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// startHub starts the hub's tunnel: stock wireguard-go. The hub means harm: the exit's mesh leads into the tunnel too.
func (w *hubWorld) startHub(t *testing.T) *lab.Stock {
	t.Helper()
	var leads []string
	for _, pair := range [][2]string{upstream, lab.ExitMesh, lab.ClientMesh} {
		leads = append(leads, pair[0]+"/32", pair[1]+"/128")
	}
	return w.H.Stock(t, lab.Tunnel{Key: w.hub, Port: hubPort, Peers: []lab.TunnelPeer{{Key: w.own.Public(), AllowedIPs: strings.Join(leads, ",")}}})
}

// leakTable counts what the exit's host sends to anywhere but its clients: WireGuard to the hub, and everything else. The kernel itself
// tells the hub of WireGuard packets that come for a socket which has just been replaced.
const leakTable = `table inet leak {
	chain out {
		type filter hook output priority -300;
		oifname { "c", "p" } accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report } accept
		ip daddr 198.51.104.10 udp dport 51821 counter accept comment "wireguard"
		ip daddr 198.51.104.10 icmp type destination-unreachable icmp code port-unreachable accept
		counter comment "leak"
	}
}`

var leakCounter = regexp.MustCompile(`counter packets (\d+) bytes \d+ (?:accept )?comment "(\w+)"`)

// sent returns how many packets the exit's host has sent to the hub's tunnel, and elsewhere.
func (w *hubWorld) sent(t *testing.T) (wireguard, leaked int) {
	t.Helper()
	text := w.X.Run(t, "nft", "list", "table", "inet", "leak")
	found := leakCounter.FindAllStringSubmatch(text, -1)
	if len(found) != 2 {
		t.Fatalf("no counters in:\n%s", text)
	}
	wireguard, _ = strconv.Atoi(found[0][1])
	leaked, _ = strconv.Atoi(found[1][1])
	return wireguard, leaked
}

// tight fails the test if anything has left the exit's host beside WireGuard to the hub.
func (w *hubWorld) tight(t *testing.T) {
	t.Helper()
	if _, leaked := w.sent(t); leaked != 0 {
		t.Errorf("%d packets left the exit's host beside the upstream", leaked)
	}
}

func (w *hubWorld) upstreamState() string {
	var s struct{ Upstream struct{ State string } }
	w.exit.Status(&s)
	return s.Upstream.State
}

// whoami serves, at a port of the server s, the address from which it is asked.
func (w *hubWorld) whoami(t *testing.T, f family, port int) (url string) {
	addr := lab.Port(lab.Server[f.i], port)
	serveTCP(t, w.S, addr, func(c *net.TCPConn) {
		c.Read(make([]byte, 4096))
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n"+host)
	})
	return "http://" + addr + "/"
}

func curl(node *lab.Node, url string) string {
	out, _ := node.Exec("", "curl", "-sS", "--max-time", "3", url)
	return out
}

// tryEverything makes c use, at once, whatever an application would, and returns what was answered.
func (w *hubWorld) tryEverything() (answered []string) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	try := func(ok func(out string, err error) bool, name string, args ...string) {
		wg.Go(func() {
			if out, err := w.C.Exec("", name, args...); ok(out, err) {
				mu.Lock()
				defer mu.Unlock()
				answered = append(answered, name+" "+strings.Join(args, " ")+": "+out)
			}
		})
	}
	succeeds := func(_ string, err error) bool { return err == nil }
	resolves := func(out string, _ error) bool { return strings.Contains(out, lab.Server[0]) }
	for _, f := range families {
		try(succeeds, "curl", "-sS", "--max-time", "2", "http://"+lab.Port(lab.Server[f.i], 80+f.i)+"/")
		try(succeeds, "ping", "-n", "-c", "2", "-W", "1", lab.Server[f.i])
		for _, server := range []string{lab.ExitMesh[f.i], lab.NameServer[f.i]} {
			for _, transport := range []string{"+notcp", "+tcp"} {
				try(resolves, "dig", "+short", "+tries=1", "+time=2", transport, "@"+server, "www.example")
			}
		}
	}
	wg.Wait()
	return answered
}

// TestUpstream sends the traffic of one client through a stock WireGuard hub and shows that nothing of it takes another way.
func TestUpstream(t *testing.T) {
	t.Parallel()
	productOnly(t, "a router with an upstream is another network")
	lab.Need(t, "curl", "dig", "ping", "traceroute", "iperf3")
	w := newHubWorld(t)
	var urls [2]string
	for _, f := range families {
		urls[f.i] = w.whoami(t, f, 80+f.i)
	}

	t.Run("nothing leaves before the first handshake", func(t *testing.T) {
		if got := w.tryEverything(); len(got) > 0 {
			t.Errorf("without an upstream: %q", got)
		}
		w.tight(t)
		if tried, _ := w.sent(t); tried == 0 {
			t.Error("the upstream was not even tried")
		}
	})
	t.Run("connections fail at once when it does not come up", func(t *testing.T) {
		lab.WaitFor(t, 20*time.Second, "the upstream to count as down", func() bool { return w.upstreamState() == "down" })
		refused := func() bool {
			began := time.Now()
			_, err := w.C.Dial("tcp4", lab.Port(lab.Server[0], 80), 3*time.Second)
			return err != nil && strings.Contains(err.Error(), "unreachable") && time.Since(began) < time.Second
		}
		if !refused() && !refused() { // one may try in vain
			t.Error("no word of it to the application")
		}
		w.tight(t)
	})
	hub := w.startHub(t)
	lab.WaitFor(t, 20*time.Second, "the upstream", func() bool { return curl(w.C, urls[0]) == hubOuter[0] })
	bothFamilies(t, func(t *testing.T, f family) { w.throughHub(t, f, urls[f.i]) })
	t.Run("names are asked of the hub's resolver", w.namesThroughHub)
	t.Run("status and conntrack tell of it", w.upstreamIsShown)
	t.Run("nothing at the exit is reached from the hub", func(t *testing.T) { w.hubReachesNothing(t, hub) })
	w.tight(t)
	t.Run("nothing leaves while the tunnel is replaced under traffic", w.replaceUnderTraffic)

	t.Run("nothing leaves while the hub is down, or the file is reloaded", func(t *testing.T) {
		// Of two tunnels with one key that call within 20 ms the hub takes the second for a repetition, which then calls again
		// 5 s later.
		lab.WaitFor(t, 10*time.Second, "the tunnel that was made last", func() bool { return curl(w.C, urls[0]) == hubOuter[0] })
		c := dialTCP(t, w.C, families[0], lab.Port(lab.Server[0], 80))
		hub.Kill()
		w.tryEverything()
		w.tight(t)
		w.writeFile(t, "MTU = 1380\n")
		if out, err := w.exit.Client("reload"); err != nil {
			t.Fatalf("reload: %v: %s", err, out)
		}
		if got := w.tryEverything(); len(got) > 0 {
			t.Errorf("after the hub was killed: %q", got)
		}
		w.tight(t)
		c.SetDeadline(time.Now().Add(soon))
		if turn(c) == nil {
			t.Error("a connection outlived its tunnel")
		}
	})
	w.startHub(t)
	t.Run("traffic resumes when the hub is back", func(t *testing.T) {
		lab.WaitFor(t, 40*time.Second, "the upstream to resume", func() bool { return curl(w.C, urls[0]) == hubOuter[0] })
		w.tight(t)
	})
	w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	t.Run("a peer that does not use it leaves by the host", func(t *testing.T) {
		w.connect(t, w.P)
		for _, f := range families {
			if got := curl(w.P, urls[f.i]); got != lab.ExitWAN[f.i] {
				t.Errorf("%s: seen as %q, want %s", f.name, got, lab.ExitWAN[f.i])
			}
		}
		if _, counted := w.sent(t); counted == 0 {
			t.Error("the counter that proves tightness counts nothing")
		}
		before := w.host.asked("www.example.")
		w.P.Exec("", "dig", "+tries=1", "+time=2", "@"+lab.ExitMesh[0], "www.example")
		if w.host.asked("www.example.") == before {
			t.Error("its names are not asked of the host's resolver")
		}
	})
	t.Run("without the section its flows are cut", func(t *testing.T) {
		serveTCP(t, w.S, lab.Port(lab.Server[0], 7), func(c *net.TCPConn) { io.Copy(c, c) })
		c := dialTCP(t, w.C, families[0], lab.Port(lab.Server[0], 7))
		if err := turn(c); err != nil {
			t.Fatal(err)
		}
		without := w.config
		without.Extra = ""
		w.exit.WriteConf(t, without)
		if out, err := w.exit.Client("reload"); err != nil {
			t.Fatalf("reload: %v: %s", err, out)
		}
		c.SetDeadline(time.Now().Add(soon))
		if turn(c) == nil {
			t.Error("the flow was moved to the host")
		}
		if got := curl(w.C, urls[0]); got != lab.ExitWAN[0] {
			t.Errorf("a new one is seen as %q, want %s", got, lab.ExitWAN[0])
		}
	})
}

// throughHub is what works through the upstream, and how.
func (w *hubWorld) throughHub(t *testing.T, f family, url string) {
	if got := curl(w.C, url); got != hubOuter[f.i] {
		t.Errorf("curl: seen as %q, want the hub's address", got)
	}
	t.Run("ping", func(t *testing.T) {
		for _, size := range []string{"56", "3000"} {
			ping(w.world, "-c", "1", "-W", "1", "-s", size, lab.Server[f.i]) // the hub may lose the first answer, to report the path's MTU
			received, duplicates, errors, out := ping(w.world, "-c", "5", "-i", "0.1", "-W", "2", "-s", size, lab.Server[f.i])
			if received != "5" || duplicates != "" || errors != "" {
				t.Errorf("%s bytes:\n%s", size, out)
			}
		}
	})
	t.Run("traceroute shows the hub", func(t *testing.T) {
		want := []string{lab.ExitMesh[f.i], hubOuter[f.i], []string{"198.51.104.1", "2001:db8:104::1"}[f.i], lab.Server[f.i]}
		for _, how := range []string{"", "-I", "-T"} {
			args := []string{"-n", "-q", "1", "-w", "1", "-m", "6", "-" + f.name[3:]}
			if how != "" {
				args = append(args, how)
			}
			var got []string
			if !lab.Poll(3*time.Second, func() bool {
				out, _ := w.C.Exec("", "traceroute", append(args, lab.Server[f.i])...)
				got = hops(out)
				if len(got) > 1 && got[1] == hubTunnel[f.i] { // the kernel answers from either of its addresses
					got[1] = hubOuter[f.i]
				}
				return slices.Equal(got, want)
			}) {
				t.Errorf("traceroute %s: hops %v, want %v", how, got, want)
			}
		}
	})
	t.Run("path MTU discovery", func(t *testing.T) {
		addr := lab.Port(lab.NarrowHost[f.i], 2011)
		serveTCP(t, w.M, addr, func(c *net.TCPConn) { io.Copy(c, c) })
		c, data := dialTCP(t, w.C, f, addr), random(t, 1<<20)
		go func() { c.Write(data); c.CloseWrite() }()
		if got, err := io.ReadAll(c); err != nil || string(got) != string(data) {
			t.Errorf("got %d of %d bytes, %v", len(got), len(data), err)
		}
		_, _, errors, out := ping(w.world, "-c", "2", "-W", "1", "-M", "do", "-s", "1340", lab.NarrowHost[f.i])
		if !strings.Contains(out, "1300") || errors == "" {
			t.Errorf("no word of the MTU of 1300:\n%s", out)
		}
	})
	t.Run("refused is refused", func(t *testing.T) {
		began := time.Now()
		if c, err := w.C.Dial(f.tcp, lab.Port(lab.Server[f.i], 9), 5*time.Second); err == nil {
			c.Close()
			t.Error("connected")
		} else if time.Since(began) > soon || !strings.Contains(err.Error(), "refused") {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
	for _, row := range [][]string{{"-t", "1"}, {"-t", "1", "-R"}, {"-t", "1", "-u", "-b", "20M"}, {"-t", "1", "-u", "-b", "20M", "-R"}} {
		t.Run("iperf3 "+strings.Join(row, " "), func(t *testing.T) {
			if sent, lost := w.iperf(t, f, 2040+f.i, row...); sent == 0 || lost > 1 {
				t.Errorf("%.1f Mbit/s, %.1f %% lost", sent, lost)
			}
		})
	}
}

// iperf measures in Mbit/s what arrives, and of UDP the share of datagrams that do not in percent.
func (w *hubWorld) iperf(t *testing.T, f family, port int, args ...string) (mbit, lost float64) {
	t.Helper()
	server := w.S.Start(t, nil, "iperf3", "-s", "-1", "-B", lab.Server[f.i], "-p", fmt.Sprint(port)) // s has several addresses
	defer server.Kill()
	lab.WaitFor(t, soon, "iperf3 to listen", func() bool { return w.S.Bound("tcp", port) })
	out := w.C.Run(t, "iperf3", append([]string{"-J", "-c", lab.Server[f.i], "-p", fmt.Sprint(port)}, args...)...)
	var r struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sum struct {
				Bits float64 `json:"bits_per_second"`
				Lost float64 `json:"lost_percent"`
			} `json:"sum"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("iperf3: %v\n%s", err, out)
	}
	return max(r.End.Received.Bits, r.End.Sum.Bits) / 1e6, r.End.Sum.Lost
}

func (w *hubWorld) namesThroughHub(t *testing.T) {
	host, names := w.host.asked("www.example."), w.names.asked("www.example.")
	for _, server := range lab.ExitMesh {
		for _, transport := range []string{"+notcp", "+tcp"} {
			out, _ := w.C.Exec("", "dig", "+short", "+tries=1", "+time=3", transport, "@"+server, "www.example")
			if strings.TrimSpace(out) != lab.Server[0] {
				t.Errorf("@%s %s: %q", server, transport, out)
			}
		}
		if out, _ := w.C.Exec("", "dig", "+short", "+time=3", "@"+server, "long.example", "TXT"); strings.Count(out, "0123456789") < 280 {
			t.Errorf("@%s: an answer that needs TCP: %q", server, out)
		}
	}
	if host, names = w.host.asked("www.example.")-host, w.names.asked("www.example.")-names; host != 0 || names == 0 {
		t.Errorf("the host's resolver was asked %d times, the hub's %d times", host, names)
	}
}

func (w *hubWorld) upstreamIsShown(t *testing.T) {
	var s struct {
		Upstream struct {
			State     string   `json:"state"`
			Addresses []string `json:"addresses"`
			Users     []string `json:"users"`
			Flows     int      `json:"flows"`
			Peers     []struct {
				Endpoint string `json:"endpoint"`
				RxBytes  int    `json:"rx_bytes"`
			} `json:"peers"`
		} `json:"upstream"`
	}
	c := dialTCP(t, w.C, families[0], lab.Port(lab.Server[0], 80))
	if err := w.exit.Status(&s); err != nil {
		t.Fatal(err)
	}
	u := s.Upstream
	if u.State != "up" || u.Flows == 0 || len(u.Peers) != 1 || u.Peers[0].Endpoint != lab.Port(hubOuter[0], hubPort) || u.Peers[0].RxBytes == 0 ||
		!slices.Equal(u.Addresses, upstream[:]) || !slices.Equal(u.Users, []string{"c"}) {
		t.Errorf("status: %+v", u)
	}
	out, err := w.exit.Client("conntrack", "-L")
	local := c.LocalAddr().(*net.TCPAddr).Port
	want := regexp.MustCompile(fmt.Sprintf(`src=%s dst=%s sport=%d dport=80 .*src=%[2]s dst=%[4]s sport=80 `, lab.ClientMesh[0], lab.Server[0], local, upstream[0]))
	if err != nil || !want.MatchString(out) {
		t.Errorf("conntrack -L (%v) has no line like %s:\n%s", err, want, out)
	}
}

// replaceUnderTraffic reloads the upstream's file again and again while the client opens flow after flow.
func (w *hubWorld) replaceUnderTraffic(t *testing.T) {
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for _, f := range families {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				if c, err := w.C.Dial(f.udp, lab.Port(lab.Server[f.i], 5000), time.Second); err == nil {
					c.Write([]byte("x"))
					c.Close()
				}
			}
		})
	}
	for i := range 6 {
		w.writeFile(t, fmt.Sprintf("MTU = %d\n", 1400-i))
		if out, err := w.exit.Client("reload"); err != nil {
			t.Errorf("reload: %v: %s", err, out)
		}
	}
	close(stop)
	wg.Wait()
	w.tight(t)
}

// hubReachesNothing tries, from the hub, what the exit serves to its peers, and the peers.
func (w *hubWorld) hubReachesNothing(t *testing.T, hub *lab.Stock) {
	var before status
	if err := w.exit.Status(&before); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, f := range families {
		for _, a := range []string{upstream[f.i], lab.ExitMesh[f.i], lab.ClientMesh[f.i]} {
			wg.Go(func() {
				if _, err := w.H.Exec("", "ping", "-n", "-c", "1", "-W", "1", "-I", hub.Dev, a); err == nil {
					t.Errorf("%s answers a ping", a)
				}
				if c, err := w.H.Dial(f.tcp, lab.Port(a, 53), time.Second); err == nil {
					c.Close()
					t.Errorf("%s takes connections", a)
				}
			})
		}
	}
	wg.Wait()
	var after status
	if err := w.exit.Status(&after); err != nil {
		t.Fatal(err)
	}
	if n := after.Drops["upstream-unsolicited"] - before.Drops["upstream-unsolicited"]; n < 6 {
		t.Errorf("%d packets from the hub were dropped as unsolicited, want at least one for each attempt", n)
	}
}

// TestUpstreamThroughput prints what a client gets through the upstream, and without it.
func TestUpstreamThroughput(t *testing.T) {
	t.Parallel()
	productOnly(t, "a router with an upstream is another network")
	lab.Need(t, "iperf3", "curl")
	w := newHubWorld(t)
	url := w.whoami(t, families[0], 80)
	w.startHub(t)
	lab.WaitFor(t, 20*time.Second, "the upstream", func() bool { return curl(w.C, url) == hubOuter[0] })
	without := w.config
	without.Extra = ""
	for _, row := range []struct {
		name string
		args []string
	}{{"up", []string{"-t", "3"}}, {"down", []string{"-t", "3", "-R"}}} {
		w.exit.WriteConf(t, w.config)
		w.exit.Client("reload")
		lab.WaitFor(t, 20*time.Second, "the upstream", func() bool { return curl(w.C, url) == hubOuter[0] })
		through, _ := w.iperf(t, families[0], 2050, row.args...)
		w.exit.WriteConf(t, without)
		w.exit.Client("reload")
		lab.WaitFor(t, 20*time.Second, "the plain exit", func() bool { return curl(w.C, url) == lab.ExitWAN[0] })
		plain, _ := w.iperf(t, families[0], 2051, row.args...)
		t.Logf("%s: %.0f Mbit/s through the upstream, %.0f Mbit/s by the host", row.name, through, plain)
	}
}
