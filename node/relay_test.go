package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/control/openmetrics"
	"culvert.dev/culvert/traversal/relay"
)

// ping sends one echo request and waits a moment for the answer.
func (d device) ping(to string) error {
	c, err := d.net.Dial("ping4", to)
	if err != nil {
		return err
	}
	defer c.Close()
	request, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{Seq: 1, Data: []byte("by relay")}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	reply := make([]byte, 128)
	n, err := c.Read(reply)
	if err == nil && !bytes.Contains(reply[:n], []byte("by relay")) {
		err = fmt.Errorf("answered with %x", reply[:n])
	}
	return err
}

// ask sends a question by TCP to the resolver at an address and returns the answer's header.
func (d device) ask(server string) (h dnsmessage.Header, err error) {
	question := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0xbeef, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("relay.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := question.Pack()
	if err != nil {
		return h, err
	}
	c, err := d.net.Dial("tcp", net.JoinHostPort(server, "53"))
	if err != nil {
		return h, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
		return h, err
	}
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return h, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, answer); err != nil {
		return h, err
	}
	var p dnsmessage.Parser
	return p.Start(answer)
}

// Two nodes that know nothing of each other but their keys carry a device's packets over a relay, and say so.
func TestNodesReachEachOtherByRelay(t *testing.T) {
	a, b, phone := newSide(t, "100.71.1.1"), newSide(t, "100.71.1.2"), newSide(t, "100.71.1.3")
	r := newRelay(t, a, b)
	forPhone := fmt.Sprintf("[Peer]\nName = phone\nPublicKey = %s\nAllowedIPs = %s/32\nAllowPeers = bob\nAllowRouting = yes\n", phone.key.Public(), phone.addr)
	na := start(t, a.write(t, b.asDistantPeer("bob", ""), forPhone, r.section()), "")
	nb := start(t, b.write(t, a.asDistantPeer("alice", "AllowRouting = yes\nAllowedIPs = "+phone.addr), "[Exit]\nDNS = 127.0.0.1:9\n", r.section()), "")
	eventually(t, "bob reached", func() bool { return na.Status().Peers[0].Path.Kind == PathRelay })

	d := startDevice(t, phone, a, "100.71.1.0/24")
	eventually(t, "an echo from bob", func() bool { return d.ping(b.addr) == nil })
	if h, err := d.ask(b.addr); err != nil || h.ID != 0xbeef || !h.Response {
		t.Errorf("DNS over TCP: %+v, %v", h, err)
	}

	s := na.Status()
	p := s.Peers[0].Path
	if p.Endpoint != r.url() || p.Relay != r.url() || p.Since.IsZero() || !strings.Contains(p.Reason, "no Endpoint is configured") {
		t.Errorf("path of bob: %+v", p)
	}
	if p.RTT <= 0 && nb.Status().Peers[0].Path.RTT <= 0 {
		t.Error("neither end knows the round-trip time of the handshake")
	}
	if direct := s.Peers[1].Path; direct.Kind != PathDirect || direct.Relay != "" {
		t.Errorf("path of the phone: %+v", direct)
	}
	if len(s.Relays) != 1 {
		t.Fatalf("got relays %+v", s.Relays)
	}
	st := s.Relays[0]
	if st.URL != r.url() || st.State != "connected" || !st.Connected || !st.Home || st.Transport == "" || st.Err != "" || st.RxPackets == 0 || st.TxBytes == 0 {
		t.Errorf("status of the relay: %+v", st)
	}
	if err := na.Health(); err != nil {
		t.Errorf("health: %v", err)
	}
	var text bytes.Buffer
	if err := s.WriteText(&text, time.Now()); err != nil || !strings.Contains(text.String(), r.url()+"  connected, home") {
		t.Errorf("status says (%v)\n%s", err, &text)
	}
	checkRelayMetrics(t, na, r)
}

func checkRelayMetrics(t *testing.T, n *Node, r *testRelay) {
	t.Helper()
	var b bytes.Buffer
	if err := control.WriteMetrics(&b, source{n}.Metrics()); err != nil {
		t.Error(err)
	}
	if _, err := openmetrics.Parse(b.Bytes()); err != nil {
		t.Error(err)
	}
	label := fmt.Sprintf(`{relay=%q} `, r.url())
	for _, want := range []string{
		"culvert_relay_connected" + label + "1", fmt.Sprintf(`culvert_relay_state{relay=%q,state="connected"} 1`, r.url()), "culvert_relay_home" + label + "1", "culvert_relay_reconnects_total" + label + "0",
		"culvert_relay_receive_bytes_total" + label, "culvert_relay_transmit_packets_total" + label, "culvert_relay_drops_total" + label + "0",
		"culvert_relay_lost_packets_total 0", `culvert_peer_path{peer="bob",kind="relay"} 1`, `culvert_peer_path{peer="bob",kind="direct"} 0`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the metrics have no %s:\n%s", want, &b)
		}
	}
}

// logText collects a log.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logText) has(all ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		found := true
		for _, s := range all {
			found = found && strings.Contains(line, s)
		}
		if found {
			return true
		}
	}
	return false
}

// A peer whose configured endpoint is dead is reached by the relay, and the reason names the endpoint.
func TestRelayStandsInForADeadEndpoint(t *testing.T) {
	a, b := newSide(t, "100.71.5.1"), newSide(t, "100.71.5.2")
	r := newRelay(t, a, b)
	gone := b
	gone.port = freePort(t)
	na := start(t, a.write(t, gone.asPeer("bob", ""), r.section()), "")
	start(t, b.write(t, a.asDistantPeer("alice", ""), r.section()), "")
	eventually(t, "bob reached by the relay", func() bool {
		p := na.Status().Peers[0].Path
		return p.Kind == PathRelay && strings.Contains(p.Reason, fmt.Sprintf("127.0.0.1:%d does not answer by UDP", gone.port))
	})
	// Told the right endpoint, it needs the relay no longer.
	a.write(t, b.asPeer("bob", ""), r.section())
	if err := na.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bob reached directly", func() bool { return na.Status().Peers[0].Path.Kind == PathDirect })
}

// With relays and servers configured a node ends as cleanly as without, whether they answer or not.
func TestCloseWithRelaysLeavesNothing(t *testing.T) {
	a, b := newSide(t, "100.71.6.1"), newSide(t, "100.71.6.2")
	before := runtime.NumGoroutine()
	r := newRelay(t, a)
	file := a.write(t, b.asDistantPeer("bob", ""), r.section(), "[Relay]\nURL = http://127.0.0.1:9\n[STUN]\nServer = 127.0.0.1:9\n",
		fmt.Sprintf("[WGSTUN]\nPublicKey = %s\nEndpoint = 127.0.0.1:9\n", newSide(t, "").key.Public()))
	n := start(t, file, "")
	eventually(t, "one relay connected", func() bool { return n.Status().Relays[0].Connected })
	n.Close()
	start(t, file, "").Close() // while everything is about to begin
	r.close()
	eventually(t, "goroutines back", func() bool { return runtime.NumGoroutine() <= before })
}

// A relay that ends is missed, and used again when it is back. Where it is the only way, the node is not ready meanwhile.
func TestRelayStopsAndComesBack(t *testing.T) {
	a, b := newSide(t, "100.71.2.1"), newSide(t, "100.71.2.2")
	r := newRelay(t, a, b)
	var log logText
	na, err := Start(t.Context(), Config{File: a.write(t, b.asDistantPeer("bob", ""), r.section()), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { na.Close() })
	start(t, b.write(t, a.asDistantPeer("alice", ""), r.section()), "")
	reached := func() bool { return na.Status().Peers[0].Path.Kind == PathRelay }
	eventually(t, "bob reached", reached)
	before := na.Status().Peers[0].Path.Since

	r.close()
	var s Status
	eventually(t, "the loss is seen", func() bool { // by the peer's path first, and then by the relay's state
		s = na.Status()
		return s.Peers[0].Path.Kind == PathNone && !s.Relays[0].Connected
	})
	if reason := s.Peers[0].Path.Reason; !strings.Contains(reason, "cut off from the relay") || !strings.Contains(reason, "no relay is connected ("+r.url()) {
		t.Errorf("reason: %s", reason)
	}
	if st := s.Relays[0]; st.Connected || st.Home || st.Err == "" {
		t.Errorf("status of the relay: %+v", st)
	}
	if err := na.Health(); err == nil || !strings.Contains(err.Error(), "no relay is connected ("+r.url()) {
		t.Errorf("health: %v", err)
	}
	eventually(t, "the loss is logged", func() bool { return log.has("peer out of reach", "bob") && log.has("relay not connected", r.url()) })

	r.start(t)
	eventually(t, "bob reached again", reached)
	if na.Health() != nil || !na.Status().Peers[0].Path.Since.After(before.Time) || na.Status().Relays[0].Reconnects == 0 {
		t.Errorf("after the relay is back: %v, %+v", na.Health(), na.Status())
	}
	eventually(t, "the way is logged", func() bool { return log.has("peer reached", "path=relay", r.url()) })
	if !log.has("relay connected", r.url()) || !log.has("relay is home", r.url()) {
		t.Error("the log does not tell of the relay")
	}
}

// Relays come and go with the configuration; one that stays keeps its connection, and a fault changes nothing.
func TestReloadChangesRelays(t *testing.T) {
	a, b := newSide(t, "100.71.3.1"), newSide(t, "100.71.3.2")
	one, two := newRelay(t, a, b), newRelay(t, a, b)
	bob := b.asDistantPeer("bob", "")
	na := start(t, a.write(t, bob), "")
	start(t, b.write(t, a.asDistantPeer("alice", ""), one.section(), two.section()), "")
	if s := na.Status(); len(s.Relays) != 0 || s.Peers[0].Path.Reason != fmt.Sprintf("waiting for the peer to call UDP port %d of this host: no Endpoint is configured for it", a.port) {
		t.Errorf("without a relay: %+v", s)
	}
	if err := na.Health(); err != nil {
		t.Errorf("health of a node that keeps up no connection: %v", err)
	}
	reload := func(sections ...string) {
		t.Helper()
		a.write(t, append([]string{bob}, sections...)...)
		if err := na.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	by := func(r *testRelay) func() bool {
		return func() bool { p := na.Status().Peers[0].Path; return p.Kind == PathRelay && p.Relay == r.url() }
	}
	reload(one.section())
	eventually(t, "bob reached by the first relay", by(one))
	since := na.Status().Relays[0].Since

	a.write(t, bob, one.section(), "[Relay]\nURL = https://relay.example\nPin = sha256//nonsense\n")
	if err := na.Reload(); err == nil || !strings.Contains(err.Error(), "is not a pin") {
		t.Errorf("reload with a wrong pin: %v", err)
	}
	reload(one.section(), two.section())
	eventually(t, "both connected", func() bool {
		s := na.Status().Relays
		return len(s) == 2 && s[0].Connected && s[1].Connected && s[0].Home != s[1].Home
	})
	if st := na.Status().Relays[0]; st.Reconnects != 0 || st.URL != one.url() || st.Home && st.Since != since {
		t.Errorf("the relay that stayed: %+v, was since %v", st, since)
	}
	reload(two.section())
	eventually(t, "bob reached by the second relay", by(two))
	reload()
	eventually(t, "no way without relays", func() bool { return na.Status().Peers[0].Path.Kind == PathNone && len(na.Status().Relays) == 0 })
}

// What a relay refuses, and where a peer is not, can be read in status.
func TestStatusTellsWhyARelayDoesNotHelp(t *testing.T) {
	a, b := newSide(t, "100.71.4.1"), newSide(t, "100.71.4.2")
	r, closed := newRelay(t, a), newRelay(t)
	na := start(t, a.write(t, b.asPeer("bob", ""), r.section(), closed.section()), "")
	eventually(t, "the relay that refuses is told", func() bool {
		for _, st := range na.Status().Relays {
			if st.URL == closed.url() && !st.Connected && st.Err != "" {
				return true
			}
		}
		return false
	})
	endpoint := fmt.Sprintf("127.0.0.1:%d", b.port)
	eventually(t, "bob is not at the relay", func() bool {
		reason := na.Status().Peers[0].Path.Reason
		return strings.Contains(reason, "no answer from "+endpoint) && strings.Contains(reason, "say that it is not there")
	})
	if err := na.Health(); err != nil {
		t.Errorf("health with a relay connected: %v", err)
	}
}

// Whatever the configuration accepts, the pool takes as it is meant, and calls by the same name.
func TestConfiguredRelaysReachThePool(t *testing.T) {
	a := newSide(t, "100.71.7.1")
	key := a.key.Public().String()
	file := a.write(t, "[Relay]\nURL = https://Relay.Example:443/\nURL = https://[2001:db8::1]:8443\nPin = sha256//"+key+"\nPin = sha256-raw:"+strings.Repeat("0A", 32),
		"[Relay]\nURL = http://192.0.2.1:80\nProxy = https://us%40er:p%2f%24@[2001:db8::2]:8080/\nWebSocket = YES",
		"[Relay]\nURL = https://a_b.example\nProxy = None\nWebSocket = no\n[Relay]\nURL = https://last.example\nProxy = http://user@proxy")
	conf, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	servers, err := RelayServers(conf.Relays)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := relay.NewPool(relay.PoolConfig{Key: a.key, Relays: servers, DialTCP: func(context.Context, string, string) (net.Conn, error) {
		return nil, net.ErrClosed
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var got []string
	for i, s := range pool.Status() {
		got = append(got, fmt.Sprintf("%s %v %q %v", s.URL, servers[i].Pins, servers[i].Proxy, servers[i].WebSocket))
		if s.URL != conf.Relays[i].URL {
			t.Errorf("the pool calls %s %s", conf.Relays[i].URL, s.URL)
		}
	}
	pins := "[sha256//" + key + " sha256-raw:" + strings.Repeat("0a", 32) + "]"
	want := []string{
		"https://relay.example " + pins + ` "" auto`,
		"https://[2001:db8::1]:8443 " + pins + ` "" auto`,
		`http://192.0.2.1 [] "https://us%40er:p%2F$@[2001:db8::2]:8080" yes`,
		`https://a_b.example [] "none" no`,
		`https://last.example [] "http://user@proxy" auto`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
