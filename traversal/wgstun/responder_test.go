package wgstun

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

func TestBindingRequestIsAnsweredWithTheOuterSource(t *testing.T) {
	for _, e := range ends {
		for _, outer := range []netip.AddrPort{outerV4, outerV6} {
			r := newResponder(t, outer)
			req := request(t)
			answers := exchange(r, udp(e.client, e.server, req.Raw))
			if len(answers) != 1 {
				t.Fatalf("%s: %d answers, want one; %+v", e.name, len(answers), r.Stats())
			}
			p := decode(t, answers[0])
			if p.SrcAddrPort() != e.server || p.DstAddrPort() != e.client || p.TTL != 64 || !p.Plain {
				t.Errorf("%s: the answer goes from %v to %v, TTL %d", e.name, p.SrcAddrPort(), p.DstAddrPort(), p.TTL)
			}
			if got := mapped(t, p.Buf[p.Data:], req); got != outer {
				t.Errorf("%s: got %v, want %v", e.name, got, outer)
			}
			if s := r.Stats(); s.STUN != 1 || len(s.Dropped) > 0 {
				t.Errorf("%s: %+v", e.name, s)
			}
		}
	}
}

func TestMappingChangeIsSeenAtTheNextRequest(t *testing.T) {
	outer := outerV4
	r := NewResponder(ResponderConfig{Origin: func([]byte) (netip.AddrPort, bool) { return outer, true }})
	defer r.Close()
	for range 3 {
		req := request(t)
		p := decode(t, exchange(r, udp(ends[0].client, ends[0].server, req.Raw))[0])
		if got := mapped(t, p.Buf[p.Data:], req); got != outer {
			t.Errorf("got %v, want %v", got, outer)
		}
		outer = netip.AddrPortFrom(outer.Addr(), outer.Port()+1)
	}
}

// TestOriginGetsThePacketItself: the outer source is found by the buffer, so that a copy would be of no use.
func TestOriginGetsThePacketItself(t *testing.T) {
	buf := append(make([]byte, offset, 2000), udp(ends[0].client, ends[0].server, request(t).Raw)...)
	asked := false
	r := NewResponder(ResponderConfig{Origin: func(b []byte) (netip.AddrPort, bool) {
		asked = true
		if &b[0] != &buf[offset] || cap(b) != cap(buf)-offset {
			t.Error("Origin got another slice than Write")
		}
		return outerV4, true
	}})
	defer r.Close()
	r.Write([][]byte{buf}, offset)
	if !asked {
		t.Error("Origin was not asked")
	}
}

func TestEcho(t *testing.T) {
	for _, e := range ends {
		for _, size := range []int{0, 1, 56, 1280 - 48, 1420 - 48} {
			r := newResponder(t, outerV4)
			data := bytes.Repeat([]byte{0xa5}, size)
			req := echo(e.client.Addr(), e.server.Addr(), 77, 3, data)
			answers := exchange(r, req)
			if len(answers) != 1 {
				t.Fatalf("%s, %d bytes: %d answers, want one", e.name, size, len(answers))
			}
			p := decode(t, answers[0])
			reply := uint8(0)
			if p.V == 6 {
				reply = 129
			}
			if p.SrcAddr() != e.server.Addr() || p.DstAddr() != e.client.Addr() || p.ICMPType != reply || p.DstPort != 77 {
				t.Errorf("%s: %v to %v, type %d, identifier %d", e.name, p.SrcAddr(), p.DstAddr(), p.ICMPType, p.DstPort)
			}
			if len(answers[0]) != len(req) || !bytes.Equal(p.Buf[p.Data:], data) {
				t.Errorf("%s: %d bytes come back of %d", e.name, len(answers[0]), len(req))
			}
			if s := r.Stats(); s.Echo != 1 {
				t.Errorf("%+v", s)
			}
		}
	}
}

func TestEchoNeedsNoOrigin(t *testing.T) {
	r := NewResponder(ResponderConfig{})
	defer r.Close()
	if n := len(exchange(r, echo(clientV6, ServerV6, 1, 1, nil))); n != 1 {
		t.Errorf("%d answers, want one", n)
	}
}

func TestUnknownOriginIsSilence(t *testing.T) {
	var log bytes.Buffer
	r := NewResponder(ResponderConfig{
		Origin: func([]byte) (netip.AddrPort, bool) { return netip.AddrPort{}, false },
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	defer r.Close()
	for range 3 {
		if n := len(exchange(r, udp(ends[1].client, ends[1].server, request(t).Raw))); n != 0 {
			t.Fatalf("%d answers, want none", n)
		}
	}
	if got := r.Stats().Dropped["no-origin"]; got != 3 {
		t.Errorf("counted %d, want 3", got)
	}
	if n := strings.Count(log.String(), "outer source"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
}

func TestConfiguredAddressesOnly(t *testing.T) {
	own := netip.MustParseAddr("10.9.9.9")
	r := NewResponder(ResponderConfig{Addrs: []netip.Addr{own}, Origin: always(outerV4)})
	defer r.Close()
	if n := len(exchange(r, echo(clientV4, ServerV4, 1, 1, nil), echo(clientV6, ServerV6, 1, 1, nil))); n != 0 {
		t.Errorf("%d answers from the well-known addresses", n)
	}
	if n := len(exchange(r, echo(clientV4, own, 1, 1, nil))); n != 1 {
		t.Errorf("%d answers from the own address, want one", n)
	}
}

func TestAnswerQueueIsBounded(t *testing.T) {
	r := newResponder(t, outerV4)
	req := udp(ends[1].client, ends[1].server, request(t).Raw)
	const flood = 5000
	for range flood {
		write(r, req)
	}
	if n := len(drain(r)); n != queueLen {
		t.Errorf("%d answers wait, want %d", n, queueLen)
	}
	if s := r.Stats(); s.STUN != queueLen || s.Dropped["queue-full"] != flood-queueLen {
		t.Errorf("%+v", s)
	}
	if n := len(exchange(r, req)); n != 1 {
		t.Errorf("%d answers once there is room again, want one", n)
	}
}

func TestReadTakesWhatFits(t *testing.T) {
	r := newResponder(t, outerV4)
	for i := range uint16(5) {
		write(r, echo(clientV4, ServerV4, 1, i, nil))
	}
	bufs, sizes := make([][]byte, 3), make([]int, 3)
	for i := range bufs {
		bufs[i] = make([]byte, 100)
	}
	seq := byte(0)
	for _, want := range []int{3, 2} {
		n, err := r.Read(bufs, sizes, offset)
		if n != want || err != nil {
			t.Fatalf("read %d, %v; want %d", n, err, want)
		}
		for i := range n {
			if got := bufs[i][offset+27]; got != seq || sizes[i] != 28 {
				t.Errorf("sequence %d of %d bytes, want %d of 28", got, sizes[i], seq)
			}
			seq++
		}
	}
}

func TestClose(t *testing.T) {
	r := NewResponder(ResponderConfig{Origin: always(outerV4)})
	ended := make(chan error)
	go func() {
		_, err := r.Read([][]byte{make([]byte, 100)}, make([]int, 1), 0)
		ended <- err
	}()
	r.Close()
	r.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read returned %v, want %v", err, os.ErrClosed)
	}
	if _, open := <-r.Events(); open {
		t.Error("Events is open after Close")
	}
	write(r, echo(clientV4, ServerV4, 1, 1, nil))
	if _, err := r.Read([][]byte{make([]byte, 100)}, make([]int, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close returned %v, want %v", err, os.ErrClosed)
	}
}

// TestManyClientsAtOnce is for the race detector, and counts that nothing is lost or answered twice while there is room.
func TestManyClientsAtOnce(t *testing.T) {
	r := NewResponder(ResponderConfig{Origin: always(outerV4), Rate: -1})
	const clients, each = 8, 200
	var writers, reader sync.WaitGroup
	got := make(map[uint32]int) // by identifier and sequence number
	reader.Go(func() {
		bufs, sizes := [][]byte{make([]byte, 200), make([]byte, 200)}, make([]int, 2)
		for {
			n, err := r.Read(bufs, sizes, 0)
			if err != nil {
				return
			}
			for i := range n {
				b := bufs[i][24:28]
				got[uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3])]++
			}
		}
	})
	for c := range uint16(clients) {
		writers.Go(func() {
			for i := range uint16(each) {
				write(r, echo(clientV4, ServerV4, c, i, nil), udp(ends[0].client, ends[1].server, nil))
			}
		})
	}
	writers.Wait()
	for waiting(r) > 0 {
		r.Stats()
	}
	r.Close()
	reader.Wait()
	s := r.Stats()
	if uint64(len(got)) != s.Echo || s.Echo+s.Dropped["queue-full"] != clients*each {
		t.Errorf("%d different answers, %+v", len(got), s)
	}
	for id, n := range got {
		if n != 1 {
			t.Errorf("%08x was answered %d times", id, n)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := NewResponder(ResponderConfig{Origin: always(outerV6), Rate: 1_000_000})
	defer r.Close()
	msg := request(t).Raw
	cases := map[string][]byte{
		"garbage":       bytes.Repeat([]byte{0x45}, 60),
		"other port":    udp(ends[0].client, netip.AddrPortFrom(ServerV4, 53), msg),
		"not STUN":      udp(ends[0].client, ends[0].server, []byte("hello")),
		"other address": udp(ends[0].client, netip.AddrPortFrom(clientV4, Port), msg),
	}
	for _, e := range ends {
		cases["STUN over "+e.name] = udp(e.client, e.server, msg)
		cases["echo over "+e.name] = echo(e.client.Addr(), e.server.Addr(), 1, 1, make([]byte, 56))
	}
	out, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
	for name, pkt := range cases {
		in := [][]byte{append(make([]byte, offset), pkt...)}
		allocs := testing.AllocsPerRun(200, func() {
			copy(in[0][offset:], pkt) // echo is answered in place
			r.Write(in, offset)
			if waiting(r) > 0 {
				r.Read(out, sizes, offset)
			}
		})
		if allocs > 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

func TestDevice(t *testing.T) {
	r := NewResponder(ResponderConfig{MTU: 100})
	defer r.Close()
	if mtu, err := r.MTU(); mtu != 1280 || err != nil {
		t.Errorf("MTU %d, %v; want the least that IPv6 allows", mtu, err)
	}
	if name, err := r.Name(); name == "" || err != nil {
		t.Errorf("name %q, %v", name, err)
	}
	if r.BatchSize() < 1 || r.File() != nil {
		t.Error("batch size or file")
	}
}

func TestAddressOf(t *testing.T) {
	key, err := wgkey.ParsePublic("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=")
	if err != nil {
		t.Fatal(err)
	}
	// printf 'culvert wgstun address 1%b' "$(printf '\\x%02x' $(seq 1 32))" | sha256sum
	if got, want := AddressOf(key), netip.MustParseAddr("fd74:656c:696f:1:625a:6ced:bbf0:36ed"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if network := netip.MustParsePrefix("fd74:656c:696f:1::/64"); !network.Contains(AddressOf(wgkey.Public{})) {
		t.Error("outside the network of clients")
	}
	var other wgkey.Public
	other[31] = 1
	if AddressOf(other) == AddressOf(wgkey.Public{}) {
		t.Error("two keys have one address")
	}
}
