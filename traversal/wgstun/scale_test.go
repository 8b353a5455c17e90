//go:build unix

package wgstun

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/tunnel"
)

// The server that is measured runs in a process of its own, which is this test program again, so that what the clients cost is not
// counted.
const serverEnv = "WGSTUN_TEST_SERVER" // how many clients it has

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv(serverEnv)); err == nil {
		if err := serve(n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// report is what the server tells of itself.
type report struct {
	Port       uint16
	AddTime    time.Duration // to add all clients
	CPU        time.Duration // of the process until now
	Resident   int64         // bytes of memory
	Goroutines int
	STUN       uint64
	Dropped    map[string]uint64
}

// serve runs a server with n clients; it writes a report at the start and for each line that it reads.
func serve(n int) error {
	r := NewResponder(ResponderConfig{Origin: tunnel.Origin})
	t, err := tunnel.New(r, tunnel.Config{PrivateKey: keyNumber(-1), AnyPort: true, Stamp: true, AnswersOnly: true})
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.Start(); err != nil {
		return err
	}
	began := time.Now()
	for i := range n {
		k := keyNumber(i).Public()
		if err := t.AddPeer(tunnel.Peer{PublicKey: k, AllowedIPs: []netip.Prefix{netip.PrefixFrom(AddressOf(k), 128)}}); err != nil {
			return err
		}
	}
	took := time.Since(began)
	in := bufio.NewScanner(os.Stdin)
	for more := true; more; more = in.Scan() {
		s := r.Stats()
		rep := report{t.ListenPort(), took, processorTime(), resident(), runtime.NumGoroutine(), s.STUN, s.Dropped}
		if err := json.NewEncoder(os.Stdout).Encode(rep); err != nil {
			return err
		}
	}
	return in.Err()
}

// keyNumber makes the same key in both processes; -1 is the server's.
func keyNumber(i int) wgkey.Private {
	b := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("test key"), uint64(i)))
	b[0] &= 248
	b[31] = b[31]&127 | 64
	k, err := wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(b[:]))
	if err != nil {
		panic(err)
	}
	return k
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func resident() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages int64
	fmt.Sscan(string(b), &size, &pages)
	return pages * int64(os.Getpagesize())
}

// crowd is many clients, and the server's process. Each client sends from an address of its own in 127.0.0.0/8, though all have one
// socket.
type crowd struct {
	t       testing.TB
	clients []*lightClient
	turn    int // whose handshake is next
	eph     wgkey.Private
	sock    *net.UDPConn
	sender  *ipv4.PacketConn // of sock
	server  net.Addr
	buf     []byte
	out     *bufio.Reader
	in      interface{ Write([]byte) (int, error) }
}

func newCrowd(t testing.TB, n int) (*crowd, report) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the server's memory is read from Linux's /proc")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", serverEnv, n))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("the server: ", err)
		}
	})
	c := &crowd{t: t, eph: keyNumber(1 << 40), buf: make([]byte, 2048), in: in, out: bufio.NewReader(out)}
	first := c.read()
	if c.sock, err = net.ListenUDP("udp4", nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.sock.Close() })
	c.sender = ipv4.NewPacketConn(c.sock)
	c.server = net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), first.Port))
	server := keyNumber(-1).Public()
	for i := range n {
		c.clients = append(c.clients, newLightClient(keyNumber(i), server, uint32(i)))
	}
	return c, first
}

func (c *crowd) read() (r report) {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), &r)
	}
	if err != nil {
		c.t.Fatal("the server's report: ", err)
	}
	return r
}

func (c *crowd) report() report {
	c.t.Helper()
	if _, err := c.in.Write([]byte("\n")); err != nil {
		c.t.Fatal(err)
	}
	return c.read()
}

// reportAfter is the report once n requests are answered: an answer is counted just after it may leave.
func (c *crowd) reportAfter(n uint64) report {
	c.t.Helper()
	r := c.report()
	for range 1000 {
		if r.STUN >= n {
			break
		}
		r = c.report()
	}
	return r
}

// addr is where client i sends from.
func (c *crowd) addr(i uint32) [4]byte { return [4]byte{127, 1 + byte(i>>16), byte(i >> 8), byte(i)} }

func (c *crowd) send(client *lightClient, msg []byte) {
	from := c.addr(client.index)
	if _, err := c.sender.WriteTo(msg, &ipv4.ControlMessage{Src: from[:]}, c.server); err != nil {
		c.t.Fatal(err)
	}
}

// receive takes one message and returns the client that it is for.
func (c *crowd) receive(typ byte) ([]byte, *lightClient) {
	c.t.Helper()
	for {
		c.sock.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := c.sock.Read(c.buf)
		if err != nil {
			c.t.Fatal(err)
		}
		msg := c.buf[:n]
		switch {
		case n == 32 && msg[0] == 4:
			continue // a keepalive
		case n < 32 || msg[0] != typ:
			c.t.Fatalf("a message of type %d, want %d", msg[0], typ)
		}
		at := 4
		if typ == 2 {
			at = 8
		}
		return msg, c.clients[binary.LittleEndian.Uint32(msg[at:])]
	}
}

// handshakes makes n, a few at a time, in turn: WireGuard takes none of one client twice within 20 ms.
func (c *crowd) handshakes(n int) {
	c.t.Helper()
	for i := range n + window {
		if i < n {
			client := c.clients[c.turn%len(c.clients)]
			c.turn++
			c.send(client, client.initiation(c.eph, time.Now()))
		}
		if i >= window {
			msg, client := c.receive(2)
			if err := client.response(msg); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

const window = 16 // how much is under way at a time

// ask sends a request of one client's.
func (c *crowd) ask(i int) {
	client := c.clients[i%len(c.clients)]
	var msg [20]byte // a Binding request with the client's number as its transaction
	msg[1] = 1
	binary.BigEndian.PutUint32(msg[4:], 0x2112a442)
	binary.BigEndian.PutUint32(msg[16:], client.index)
	c.send(client, client.data(udp(netip.AddrPortFrom(AddressOf(client.key), 50000), netip.AddrPortFrom(ServerV6, Port), msg[:])))
}

// answer takes an answer and checks that it is the client's own.
func (c *crowd) answer() {
	c.t.Helper()
	msg, client := c.receive(4)
	pkt, err := client.open(msg)
	if err != nil {
		c.t.Fatal(err)
	}
	var p packet.Packet
	if f := packet.Decode(&p, pkt); f != packet.FaultNone || p.DstAddr() != AddressOf(client.key) {
		c.t.Fatalf("%v, to %v instead of %v", f, p.DstAddr(), AddressOf(client.key))
	}
	m := p.Buf[p.Data:]
	port := uint16(c.sock.LocalAddr().(*net.UDPAddr).Port)
	// XOR-MAPPED-ADDRESS comes first, behind the header of 20 bytes: its port is at 6 and its address at 8 (RFC 8489 section 14.2).
	addr := c.addr(client.index)
	if binary.BigEndian.Uint32(m[16:]) != client.index || binary.BigEndian.Uint16(m[26:])^0x2112 != port ||
		binary.BigEndian.Uint32(m[28:])^0x2112a442 != binary.BigEndian.Uint32(addr[:]) {
		c.t.Fatalf("answer %x, want number %d, %v and port %d", m, client.index, addr, port)
	}
}

func TestManyClientsEachGetTheirOwnAnswer(t *testing.T) {
	c, _ := newCrowd(t, 200)
	c.handshakes(200)
	for i := range 400 {
		c.ask(i)
		if i >= window {
			c.answer()
		}
	}
	for range window {
		c.answer()
	}
	if r := c.reportAfter(400); r.STUN != 400 || len(r.Dropped) > 0 {
		t.Errorf("%+v", r)
	}
}

// population is what one server is to carry: as many clients as ask 200 times a second, every 25 s each.
const population = 5000

// BenchmarkServer measures the server's process with all its clients registered: the processor time of a request and of a handshake,
// one after the other at full speed, and the share of a core that they take at their usual pace, which is 200 requests a second and a
// handshake of each client every 120 s. With -benchtime 2000x the last takes ten seconds.
func BenchmarkServer(b *testing.B) {
	c, first := newCrowd(b, population)
	idle := float64(first.Resident) / 1e6
	c.handshakes(population)
	for _, w := range []struct {
		name string
		each int // of what is counted, per step
		step func(i int)
	}{
		{"request", 1, func(i int) { c.ask(i); c.answer() }},
		{"handshake", window, func(int) { c.handshakes(window) }},
	} {
		b.Run(w.name, func(b *testing.B) {
			c.t = b
			before, i := c.report(), 0
			for b.Loop() {
				w.step(i)
				i++
			}
			b.ReportMetric(float64((c.report().CPU-before.CPU).Microseconds())/float64(i*w.each), "µs-cpu/"+w.name)
		})
	}
	b.Run("pace", func(b *testing.B) {
		c.t = b
		before, began, i := c.report(), time.Now(), 0
		tick := time.NewTicker(time.Second / 200)
		defer tick.Stop()
		for b.Loop() {
			<-tick.C
			if i%24 == 0 { // 5,000 in 120 s are 5 in 24 ticks
				c.handshakes(5)
			}
			c.ask(i)
			c.answer()
			i++
		}
		after, took := c.reportAfter(before.STUN+uint64(i)), time.Since(began)
		b.ReportMetric(100*float64(after.CPU-before.CPU)/float64(took), "%core")
		b.ReportMetric(idle, "MB-registered")
		b.ReportMetric(float64(after.Resident)/1e6, "MB-all-connected")
		b.ReportMetric(float64(first.AddTime.Microseconds())/population, "µs/registration")
	})
}
