package tunnel

import (
	"fmt"
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

const protoTCP, protoUDP = 6, 17

func packetsOf(protocols ...byte) (bufs [][]byte, sizes []int) {
	for _, p := range protocols {
		b := make([]byte, 16+100)
		b[16], b[16+9] = 0x45, p
		bufs, sizes = append(bufs, b), append(sizes, 100)
	}
	return bufs, sizes
}

// The kind of most packets read last decides; a ping beside a download does not.
func TestTrainsFollowWhatIsRead(t *testing.T) {
	var s trains
	for _, c := range []struct {
		name      string
		protocols []byte
		want      bool
	}{
		{"datagrams", []byte{protoUDP, protoUDP}, true},
		{"nothing, which changes nothing", nil, true},
		{"most are segments", []byte{protoUDP, protoTCP, protoTCP}, false},
		{"most are datagrams", []byte{protoUDP, protoTCP, protoUDP}, true},
		{"an echo", []byte{1}, false},
	} {
		bufs, sizes := packetsOf(c.protocols...)
		s.saw(bufs, sizes, 16)
		if got := s.short.Load(); got != c.want {
			t.Errorf("%s: short trains %v, want %v", c.name, got, c.want)
		}
	}
	bufs, sizes := packetsOf(protoUDP)
	(*trains)(nil).saw(bufs, sizes, 16) // a bind that decides by itself
}

func TestIsUDP(t *testing.T) {
	v4 := make([]byte, 28)
	v4[0], v4[9] = 0x45, protoUDP
	v6 := make([]byte, 48)
	v6[0], v6[6] = 0x60, protoUDP
	other6 := make([]byte, 48)
	other6[0], other6[6], other6[9] = 0x60, protoTCP, protoUDP
	for _, c := range []struct {
		name string
		pkt  []byte
		want bool
	}{
		{"IPv4", v4, true}, {"IPv6", v6, true}, {"another protocol", other6, false},
		{"IPv4, cut off", v4[:19], false}, {"IPv6, cut off", v6[:39], false}, {"nothing", nil, false},
	} {
		if got := isUDP(c.pkt); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// What the sockets of a tunnel send follows what the tunnel reads, those beside the bind's included.
func TestTunnelSendsDatagramsInShortTrains(t *testing.T) {
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	bind := newBind(discard).(*udpBind)
	side, err := openSideSocket(bind, 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer side.close()
	dev := newBatchTUN(nil)
	tun, err := New(dev, Config{PrivateKey: key, Bind: bind})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	a, b := netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2")
	for _, c := range []struct {
		protocol byte
		want     int
	}{{protoUDP, shortTrain}, {protoTCP, maxSegmented / 1432}, {protoUDP, shortTrain}} {
		for range 2 { // the first has been looked at when the second is read
			packets := packetsTo(a, b, 128, 1400)
			for _, p := range packets {
				p[9] = c.protocol
			}
			dev.out <- packets
		}
		for name, sender := range map[string]*udpBind{"bind": bind, "socket beside": side.(*besideSocket).bind} {
			if got := longestTrain(t, sender); got != c.want {
				t.Errorf("protocol %d, %s: trains of up to %d datagrams, want %d", c.protocol, name, got, c.want)
			}
		}
	}
}

// longestTrain returns of how many datagrams the longest message is when b sends a full batch of those of 1,432 bytes now.
func longestTrain(t *testing.T, b *udpBind) (longest int) {
	t.Helper()
	s := newSendState()
	to, err := newEndpoint(netip.MustParseAddrPort("127.0.0.1:9"))
	if err != nil {
		t.Fatal(err)
	}
	s.fill(newBufs(128, 1432), to, true, b.trains.short.Load(), false)
	for i := range s.n {
		longest = max(longest, s.first[i+1]-s.first[i])
	}
	return longest
}

// The receiver sees the trains as they were sent.
func TestTrainsOnTheWire(t *testing.T) {
	for _, short := range []bool{false, true} {
		t.Run(fmt.Sprintf("short=%v", short), func(t *testing.T) {
			src, dst := newBind(discard).(*udpBind), newBind(discard).(*udpBind)
			openBind(t, src)
			_, _, port := openBind(t, dst)
			r := newReceiver(dst.v4.Load())
			if r.slabs == nil || !src.v4.Load().gso.Load() {
				t.Skip("this kernel has no UDP segmentation offload")
			}
			src.trains.short.Store(short)
			to, err := src.ParseEndpoint(loopback(false, port))
			if err != nil {
				t.Fatal(err)
			}
			if err := src.Send(newBufs(64, 1400), to); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < 64*1400; {
				if err := r.fill(nil); err != nil {
					t.Fatal(err)
				}
				for i := range r.got {
					n := int(r.msgs[i].n)
					got += n
					if trains := n / 1400; short && trains > shortTrain {
						t.Errorf("%d datagrams in one message, want %d at most", trains, shortTrain)
					} else if !short && got == n && trains <= shortTrain {
						t.Errorf("%d datagrams in the first message, want as many as go", trains)
					}
				}
			}
		})
	}
}
