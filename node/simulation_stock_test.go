package node

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	wireguard "golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
)

// stockNode is wireguard-go as others have it, with a simNode for its peer.
type stockNode struct {
	dev    *wireguard.Device
	tun    *simTUN
	public wgkey.Public
	addr   netip.Addr

	mu      sync.Mutex // guards the following
	strange int        // datagrams that are none of WireGuard's
}

// stock makes one; it calls if it is told where the peer is.
func (w *simWorld) stock(h *testnet.Host, peer *simNode, endpoint string) *stockNode {
	key := w.key("stock")
	s := &stockNode{public: key.Public(), addr: netip.MustParseAddr("10.77.255.1")}
	s.tun = newSimTUN(s.addr)
	s.dev = wireguard.NewDevice(s.tun, testnet.NewBind(h), &wireguard.Logger{Verbosef: wireguard.DiscardLogf, Errorf: wireguard.DiscardLogf})
	text := fmt.Sprintf("private_key=%s\nlisten_port=5555\npublic_key=%s\nallowed_ip=%s/32\n", key.RevealHex(), peer.public.Hex(), peer.addr)
	if endpoint != "" {
		text += fmt.Sprintf("endpoint=%s\npersistent_keepalive_interval=25\n", endpoint)
	}
	if err := s.dev.IpcSet(text); err != nil {
		w.Fatal(err)
	}
	if err := testnet.Pin(s.dev); err != nil {
		w.Fatal(err)
	}
	h.Link().Filter(nil, func(b []byte) bool {
		if _, _, _, udp := udpOf(b); udp && withoutWireGuard(b) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.strange++
		}
		return true
	})
	return s
}

// echoes reports how long after it is asked for an echo between the two passes; false if none does in time.
func (w *simWorld) echoes(from, to *simTUN, limit time.Duration) (time.Duration, bool) {
	n := &simNode{w: w, tun: from}
	return n.ping(&simNode{addr: to.addr}, limit)
}

// TestSimulationOfAStockPeer: beside a peer that is moved to a direct path there is one that knows nothing of all that, and has an Endpoint,
// or calls from wherever it is. It is served by WireGuard as ever, and sent nothing else.
func TestSimulationOfAStockPeer(t *testing.T) {
	for _, calls := range []bool{false, true} {
		t.Run(fmt.Sprintf("it calls: %v", calls), func(t *testing.T) {
			simulate(t, 73, func(w *simWorld) {
				x, y := w.node("x", w.home("a", testnet.Pub).Host, simConfig{port: 7001}), w.node("y", w.home("b", testnet.PRC).Host, simConfig{})
				far := w.home("stock", testnet.Pub)
				callTo, endpoint := "", netip.AddrPortFrom(far.Addr(), 5555).String()
				if calls {
					callTo, endpoint = netip.AddrPortFrom(x.host.Addr(), 7001).String(), ""
				}
				s := w.stock(far.Host, x, callTo)
				defer func() {
					s.dev.Close()
					<-s.dev.Wait()
				}()
				x.setPeers(y.peer(""), config.Peer{Name: "stock", PublicKey: s.public, AllowedIPs: []netip.Prefix{netip.PrefixFrom(s.addr, 32)}, Endpoint: endpoint})
				y.setPeers(x.peer(""))
				if err := s.dev.Up(); err != nil {
					t.Fatal(err)
				}
				x.start()
				y.start()
				w.flows(x, y, 100*ms)
				first, second := x.tun, s.tun
				if calls {
					first, second = second, first
				}
				for i, e := range [][2]*simTUN{{first, second}, {second, first}} {
					if took, ok := w.echoes(e[0], e[1], 2*time.Second); !ok || took > 200*ms {
						t.Errorf("echo %d: %v after %v\n%s", i, ok, took, x.log)
					}
				}
				w.untilDirect("beside it", x, y, 5*time.Second)
				for range simFor(5*time.Minute) / (10 * time.Second) {
					time.Sleep(10 * time.Second)
					if _, ok := w.echoes(x.tun, s.tun, 150*ms); !ok {
						t.Fatalf("the stock peer is not reached\n%s", x.log)
					}
				}
				far.Move(w.home("elsewhere", testnet.Pub).gateway.Router, testnet.HostConfig{})
				if _, ok := w.echoes(s.tun, x.tun, 10*time.Second); !ok {
					t.Errorf("the stock peer does not get through from elsewhere\n%s", x.log)
				}
				if _, ok := w.echoes(x.tun, s.tun, 150*ms); !ok {
					t.Errorf("the stock peer is not followed\n%s", x.log)
				}
				stats, err := x.tunnel.Stats()
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range stats {
					if p.PublicKey == s.public && (p.Relayed || p.Endpoint != netip.AddrPortFrom(far.Addr(), 5555)) {
						t.Errorf("the stock peer is reached at %v, relayed %v", p.Endpoint, p.Relayed)
					}
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.strange > 0 {
					t.Errorf("the stock peer was sent %d datagrams that are not WireGuard's", s.strange)
				}
			})
		})
	}
}
