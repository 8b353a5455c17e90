package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func TestAnswersByUDPAndTCP(t *testing.T) {
	up := newUpstream(t, fixed("192.0.2.7"))
	s, addr := newServer(t, Config{CacheEntries: -1}, up)
	for network, ask := range map[string]func(testing.TB, string, dnsmessage.Message) dnsmessage.Message{"udp": mustUDP, "tcp": mustTCP} {
		m := ask(t, addr, question("Example.com.", dnsmessage.TypeA))
		if got := addresses(m); len(got) != 1 || got[0] != "192.0.2.7" {
			t.Errorf("%s: got %v, want 192.0.2.7", network, got)
		}
		if got := m.Questions[0].Name.String(); got != "Example.com." {
			t.Errorf("%s: question came back as %s", network, got)
		}
	}
	if c := s.Counters(); c.Queries != 2 || c.Failures+c.Dropped+c.Refused != 0 {
		t.Errorf("counters %+v, want 2 queries and nothing else", c)
	}
}

func TestQueriesThatAreNotForwarded(t *testing.T) {
	up := newUpstream(t, fixed("192.0.2.7"))
	_, addr := newServer(t, Config{}, up)
	good := pack(t, question("example.com.", dnsmessage.TypeA))
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	const drop = -1
	for _, c := range []struct {
		name  string
		query []byte
		want  int // rcode
	}{
		{"shorter than a header", good[:11], drop},
		{"empty", nil, drop},
		{"a response", edit(func(b []byte) []byte { return setFlag(b, flagQR) }), drop},
		{"header only", edit(func(b []byte) []byte { return b[:12] }), 1},
		{"question cut", good[:len(good)-1], 1},
		{"no question", edit(func(b []byte) []byte { b[5] = 0; return b[:12] }), 1},
		{"two questions", edit(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), 1},
		{"compressed question", edit(func(b []byte) []byte { return append(b[:12:12], 0xc0, 12, 0, 1, 0, 1) }), 1},
		{"label type 0x40", edit(func(b []byte) []byte { b[12] = 0x41; return b }), 1},
		{"name above 255 bytes", longName(good), 1},
		{"record promised but absent", edit(func(b []byte) []byte { b[11] = 1; return b }), 1},
		{"record in the answer section", pack(t, question("example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{record4("example.com.", "192.0.2.1", 1)}
		})), 1},
		{"two OPT records", pack(t, question("example.com.", dnsmessage.TypeA, edns(1232), edns(1232))), 1},
		{"longer than any query", append(bytes.Clone(good), make([]byte, maxQueryLen)...), 1},
		{"opcode NOTIFY", edit(func(b []byte) []byte { return setFlag(b, 4<<11) }), 4},
		{"opcode UPDATE", edit(func(b []byte) []byte { return setFlag(b, 5<<11) }), 4},
		{"AXFR", pack(t, question("example.com.", typeAXFR)), 5},
		{"IXFR", pack(t, question("example.com.", typeIXFR)), 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			wait := 5 * time.Second
			if c.want == drop {
				wait = 100 * time.Millisecond
			}
			b, err := rawUDP(t, addr, c.query, wait)
			switch {
			case c.want == drop && err == nil:
				t.Errorf("got % x, want no answer", b)
			case c.want == drop:
			case err != nil:
				t.Fatal(err)
			case int(b[3]&0xf) != c.want || b[2]&0x80 == 0 || !bytes.Equal(b[:2], good[:2]):
				t.Errorf("got header % x, want a response with rcode %d and ID % x", b[:4], c.want, good[:2])
			}
		})
	}
	if n := up.udp.Load() + up.tcp.Load(); n != 0 {
		t.Errorf("the upstream saw %d queries, want none", n)
	}
}

func longName(good []byte) []byte {
	b := bytes.Clone(good[:12])
	for range 5 {
		b = append(append(b, 63), bytes.Repeat([]byte{'a'}, 63)...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

func TestRefusalToEDNSQueryHasEDNS(t *testing.T) {
	_, addr := newServer(t, Config{}, newUpstream(t, silent))
	m := mustUDP(t, addr, question("example.com.", typeAXFR, edns(1232)))
	if m.RCode != dnsmessage.RCodeRefused || len(m.Additionals) != 1 || m.Additionals[0].Header.Type != dnsmessage.TypeOPT {
		t.Errorf("got %v with %v, want REFUSED with OPT", m.RCode, m.Additionals)
	}
}

func TestClientThatIsNotAdmittedIsRefused(t *testing.T) {
	up := newUpstream(t, fixed("192.0.2.7"))
	_, addr := newServer(t, Config{Admit: func(c netip.Addr) bool { return !c.IsLoopback() }}, up)
	if m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("got %v, want REFUSED", m.RCode)
	}
	if up.udp.Load() != 0 {
		t.Error("the query was forwarded")
	}
}

func TestEDNSPassesThroughUnchanged(t *testing.T) {
	option := dnsmessage.Option{Code: 8, Data: []byte{0, 1, 24, 0, 192, 0, 2}} // client subnet
	seen := make(chan dnsmessage.Message, 1)
	up := newUpstream(t, func(_ string, q dnsmessage.Message) [][]byte {
		seen <- q
		b, _ := answerTo2(q, dnsmessage.Option{Code: 15, Data: []byte{0, 3}}).Pack()
		return [][]byte{b}
	})
	_, addr := newServer(t, Config{}, up)
	m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeA, edns(1400, option)))
	q := <-seen
	opt, ok := q.Additionals[0].Body.(*dnsmessage.OPTResource)
	if !ok || q.Additionals[0].Header.Class != 1400 || len(opt.Options) != 1 || !bytes.Equal(opt.Options[0].Data, option.Data) {
		t.Errorf("upstream saw %v, want size 1400 and the option", q.Additionals)
	}
	back, ok := m.Additionals[0].Body.(*dnsmessage.OPTResource)
	if !ok || len(back.Options) != 1 || back.Options[0].Code != 15 {
		t.Errorf("client saw %v, want the extended error", m.Additionals)
	}
}

func answerTo2(q dnsmessage.Message, options ...dnsmessage.Option) *dnsmessage.Message {
	q.Additionals = nil
	edns(1232, options...)(&q)
	m := answerTo(q, record4(q.Questions[0].Name.String(), "192.0.2.7", 60))
	return &m
}

// big answers with 20 TXT records (about 4,000 bytes), cut to what the query allows and udpMax when asked by UDP.
func big(records, udpMax int) handler {
	return func(network string, q dnsmessage.Message) [][]byte {
		m := answerTo(q, texts(q.Questions[0].Name.String(), records)...)
		b, _ := m.Pack()
		limit := 512
		for _, r := range q.Additionals {
			limit = min(int(r.Header.Class), udpMax)
		}
		if network == "udp" && len(b) > limit {
			m.Answers, m.Truncated = nil, true
			b, _ = m.Pack()
		}
		return [][]byte{b}
	}
}

func TestLargeAnswers(t *testing.T) {
	for _, c := range []struct {
		name      string
		upstream  handler
		query     []func(*dnsmessage.Message)
		tcp       bool
		truncated bool
		records   int
		tcpAsked  int64
	}{
		{"512 bytes without EDNS", big(5, 4096), nil, false, true, 0, 0},
		{"advertised size is enough", big(5, 4096), []func(*dnsmessage.Message){edns(1232)}, false, false, 5, 0},
		{"advertised size is too little", big(10, 4096), []func(*dnsmessage.Message){edns(1232)}, false, true, 0, 0},
		{"client takes more than the upstream sends", big(10, 1232), []func(*dnsmessage.Message){edns(4096)}, false, false, 10, 1},
		{"client takes more, but not enough", big(40, 1232), []func(*dnsmessage.Message){edns(4096)}, false, true, 0, 1},
		{"upstream ignores the advertised size", oversized(5), nil, false, true, 0, 0},
		{"upstream sends more than we can receive", oversized(40), []func(*dnsmessage.Message){edns(4096)}, false, true, 0, 1},
		{"by TCP, upstream truncates", big(40, 1232), nil, true, false, 40, 1},
		{"by TCP, 60 kB", big(300, 1232), nil, true, false, 300, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := newUpstream(t, c.upstream)
			s, addr := newServer(t, Config{}, up)
			q := question("example.com.", dnsmessage.TypeTXT, c.query...)
			var m dnsmessage.Message
			if c.tcp {
				m = mustTCP(t, addr, q)
			} else {
				m = mustUDP(t, addr, q)
			}
			if m.Truncated != c.truncated || len(m.Answers) != c.records || len(m.Questions) != 1 {
				t.Errorf("truncated %v with %d answers, want %v with %d", m.Truncated, len(m.Answers), c.truncated, c.records)
			}
			if len(m.Additionals) != len(q.Additionals) {
				t.Errorf("additional section is %v, want OPT kept", m.Additionals)
			}
			if got := up.tcp.Load(); got != c.tcpAsked {
				t.Errorf("upstream was asked %d times by TCP, want %d", got, c.tcpAsked)
			}
			if got := s.Counters().Truncated; (got == 1) != c.truncated {
				t.Errorf("counter of truncated answers is %d", got)
			}
		})
	}
}

func oversized(records int) handler {
	return func(_ string, q dnsmessage.Message) [][]byte {
		m := answerTo(q, texts(q.Questions[0].Name.String(), records)...)
		b, _ := m.Pack()
		return [][]byte{b}
	}
}

func TestAdditionalRecordsAreDroppedWithoutTruncation(t *testing.T) {
	_, addr := newServer(t, Config{}, newUpstream(t, func(_ string, q dnsmessage.Message) [][]byte {
		m := answerTo(q, texts("example.com.", 3)...)
		m.Additionals = append(texts("glue.example.com.", 4), m.Additionals...)
		b, _ := m.Pack()
		return [][]byte{b}
	}))
	m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeTXT, edns(1000)))
	if m.Truncated || len(m.Answers) != 3 || len(m.Additionals) != 1 {
		t.Errorf("truncated %v, %d answers, %d additional; want false, 3, OPT", m.Truncated, len(m.Answers), len(m.Additionals))
	}
}

func TestUpstreamTruncationPassesWhenTCPFails(t *testing.T) {
	up := newUpstream(t, func(network string, q dnsmessage.Message) [][]byte {
		if network == "tcp" {
			return nil
		}
		return big(40, 1232)(network, q)
	})
	_, addr := newServer(t, Config{}, up)
	m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeTXT, edns(4096)))
	if !m.Truncated || m.RCode != dnsmessage.RCodeSuccess {
		t.Errorf("got %v, truncated %v; want success, truncated", m.RCode, m.Truncated)
	}
}

func TestTCPPipelining(t *testing.T) {
	up := newUpstream(t, func(_ string, q dnsmessage.Message) [][]byte {
		m := answerTo(q, record4(q.Questions[0].Name.String(), "192.0.2.7", 60))
		b, _ := m.Pack()
		return [][]byte{b}
	})
	_, addr := newServer(t, Config{}, up)
	c := dialTCP(t, addr)
	const n = 3 * maxPipelined
	go func() {
		for i := range n {
			q := question(fmt.Sprintf("n%d.example.", i), dnsmessage.TypeA)
			q.ID = uint16(i)
			b, _ := q.Pack()
			writeMessage(c, b)
		}
		c.(*net.TCPConn).CloseWrite() // the answers are still owed
	}()
	seen := make(map[uint16]bool)
	for range n {
		b, err := readMessage(c, 0xffff)
		if err != nil {
			t.Fatalf("after %d answers: %v", len(seen), err)
		}
		m := unpack(t, b)
		if want := fmt.Sprintf("n%d.example.", m.ID); m.Questions[0].Name.String() != want || seen[m.ID] {
			t.Errorf("answer %d is for %v, want %s, once", m.ID, m.Questions[0].Name, want)
		}
		seen[m.ID] = true
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the last answer: %v, want EOF", err)
	}
}

func TestTCPConnectionWithoutQueriesIsClosed(t *testing.T) {
	_, addr := newServer(t, Config{}, newUpstream(t, silent))
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"too short", []byte{0, 5, 1, 2, 3, 4, 5}},
		{"too long", []byte{0xff, 0xff}},
		{"a response", func() []byte {
			b := pack(t, question("example.com.", dnsmessage.TypeA))
			return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), setFlag(b, flagQR)...)
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dialTCP(t, addr)
			conn.Write(c.data)
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read %d bytes, %v; want the connection closed", n, err)
			}
		})
	}
}

func TestConnectionsPerClientAreBounded(t *testing.T) {
	s, addr := newServer(t, Config{}, newUpstream(t, silent))
	for range maxConnsPerPeer {
		dialTCP(t, addr)
	}
	extra := dialTCP(t, addr)
	if _, err := extra.Read(make([]byte, 1)); err == nil {
		t.Error("one connection too many was served")
	}
	if s.Counters().Dropped != 1 {
		t.Errorf("dropped %d, want 1", s.Counters().Dropped)
	}
}

func TestQueriesInFlightAreBounded(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	defer once.Do(func() { close(release) })
	started := make(chan struct{}, 100)
	s, addr := newServer(t, Config{MaxQueriesPerPeer: 4, CacheEntries: -1, Dial: blockingDial(started, release)}, newUpstream(t, silent))
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 10 { // equal ones would be asked as one
		c.Write(pack(t, question(fmt.Sprintf("n%d.example.com.", i), dnsmessage.TypeA)))
	}
	for range 4 {
		<-started
	}
	waitFor(t, func() bool { return s.Counters().Dropped == 6 })

	m := mustTCP(t, addr, question("example.com.", dnsmessage.TypeA)) // TCP clients are told
	if m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("over the limit by TCP: %v, want SERVFAIL", m.RCode)
	}
	once.Do(func() { close(release) })
	waitFor(t, func() bool { return s.queries.acquire(netip.Addr{}) })
	s.queries.release(netip.Addr{})
}

func TestLimiter(t *testing.T) {
	a, b := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd7a::3")
	l := newLimiter(3, 2)
	for i, step := range []struct {
		client netip.Addr
		want   bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {b, false}} {
		if got := l.acquire(step.client); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
	l.release(a)
	if !l.acquire(b) {
		t.Error("a place that was released is not given again")
	}
	l.release(a)
	l.release(b)
	l.release(b)
	if len(l.perClient) != 0 || l.total != 0 {
		t.Errorf("%d clients and %d places are left", len(l.perClient), l.total)
	}
}

func TestCloseAbandonsQueries(t *testing.T) {
	seen := make(chan struct{}, 10)
	up := newUpstream(t, func(string, dnsmessage.Message) [][]byte { seen <- struct{}{}; return nil })
	s, addr := newServer(t, Config{}, up)
	c := dialTCP(t, addr)
	writeMessage(c, pack(t, question("example.com.", dnsmessage.TypeA)))
	<-seen
	start := time.Now()
	s.Close()
	if took := time.Since(start); took > time.Second {
		t.Errorf("Close took %v with a query in flight", took)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ServeUDP(pc); err != nil {
		t.Errorf("ServeUDP after Close: %v, want nil", err)
	}
	if _, err := pc.WriteTo([]byte("x"), pc.LocalAddr()); err == nil {
		t.Error("ServeUDP after Close left the socket open")
	}
}

func TestServeReportsForeignClose(t *testing.T) {
	s := New(Config{Upstreams: func() []netip.AddrPort { return nil }})
	defer s.Close()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	if err := s.ServeUDP(pc); err == nil {
		t.Error("ServeUDP on a closed socket returned nil")
	}
}

func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("dig is not installed")
	}
	_, addr := newServer(t, Config{}, newUpstream(t, big(10, 1232)))
	_, port, _ := net.SplitHostPort(addr)
	for _, c := range []struct {
		name string
		args string
		want []string
	}{
		{"EDNS with cookie", "+bufsize=4096 +ignore", []string{"status: NOERROR", "ANSWER: 10", "EDNS: version: 0"}},
		{"no EDNS is cut", "+noedns +ignore", []string{"status: NOERROR", "flags: qr tc rd ra", "ANSWER: 0"}},
		{"dig goes on by TCP", "+noedns", []string{"Truncated, retrying in TCP mode", "ANSWER: 10"}},
		{"TCP, several on one connection", "+tcp +keepopen example.org TXT", []string{"ANSWER: 10"}},
		{"AXFR", "-t AXFR", []string{"Transfer failed"}},
		{"NOTIFY", "+opcode=notify", []string{"status: NOTIMP"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"@127.0.0.1", "-p", port, "+tries=1", "+time=5", "example.com", "TXT"}, strings.Fields(c.args)...)
			out, err := exec.Command(dig, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("dig: %v\n%s", err, out)
			}
			for _, w := range c.want {
				if !bytes.Contains(out, []byte(w)) {
					t.Errorf("no %q in\n%s", w, out)
				}
			}
		})
	}
}

func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	for range 1000 {
		if cond() {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatal("condition did not come true in 2 s")
}
