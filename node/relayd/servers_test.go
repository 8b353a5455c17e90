package relayd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/stun"
	"culvert.dev/culvert/traversal/wgstun"
	"culvert.dev/culvert/tunnel"
)

func TestSTUNAnswers(t *testing.T) {
	r := start(t, setUp(t, strings.Replace(quiet, "[STUN]\nListen = off", "[STUN]\nListen = 127.0.0.1:0", 1)))
	server, err := netip.ParseAddrPort(r.Offer().STUN)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	c := stun.NewClient(func(msg []byte, to netip.AddrPort) error { _, err := socket.WriteToUDPAddrPort(msg, to); return err })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := socket.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			c.Handle(b[:n], from)
		}
	}()
	got, err := c.Bind(t.Context(), server)
	if err != nil || got.Mapped != socket.LocalAddr().(*net.UDPAddr).AddrPort() {
		t.Errorf("got %v, %v", got.Mapped, err)
	}
	if st := r.Status().STUN; st == nil || st.Answered != 1 || len(st.Listen) != 2 {
		t.Errorf("status: %+v", st)
	}
	r.Close()
	if l, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(server)); err != nil {
		t.Errorf("the port is still in use: %v", err)
	} else {
		l.Close()
	}
}

// stock is wireguard-go as it comes, with a packet queue in the place of its interface.
type stock struct {
	dev  *device.Device
	tun  *tuntest.ChannelTUN
	stun *wgstun.Client
}

// newStock runs a WireGuard client with the one peer that an offer describes.
func newStock(t *testing.T, key wgkey.Private, o WGSTUNOffer, self, server netip.Addr) *stock {
	t.Helper()
	s := &stock{tun: tuntest.NewChannelTUN()}
	s.dev = device.NewDevice(s.tun.TUN(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	text := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\n", key.RevealHex(), o.PublicKey.Hex(), o.Endpoint)
	for _, a := range o.Addresses {
		text += fmt.Sprintf("allowed_ip=%s/%d\n", a, a.BitLen())
	}
	err := s.dev.IpcSet(text)
	if err == nil {
		err = s.dev.Up()
	}
	if err == nil {
		s.stun, err = wgstun.NewClient(wgstun.ClientConfig{Self: self, Server: server, Send: func(packet []byte) error {
			select {
			case s.tun.Outbound <- append([]byte(nil), packet...):
			case <-s.dev.Wait():
			}
			return nil
		}})
	}
	if err != nil {
		s.dev.Close()
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case packet := <-s.tun.Inbound:
				s.stun.Receive(packet)
			case <-s.dev.Wait():
				return
			}
		}
	}()
	t.Cleanup(func() { s.dev.Close(); <-ended })
	return s
}

// ask returns the outer address that the server saw, and the socket's own port.
func (s *stock) ask(t *testing.T, limit time.Duration) (outer netip.AddrPort, port string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	a, err := s.stun.Query(ctx)
	text, ipcErr := s.dev.IpcGet()
	if ipcErr != nil {
		t.Fatal(ipcErr)
	}
	_, rest, _ := strings.Cut(text, "listen_port=")
	port, _, _ = strings.Cut(rest, "\n")
	return a.Mapped, port, err
}

func TestWGSTUNAnswersStockClients(t *testing.T) {
	static, visitor := newKey(t), newKey(t)
	inner := netip.MustParseAddr("100.64.1.7")
	for what, listen := range map[string]string{"at an address": "127.0.0.1:0", "at all addresses": ":" + freeUDPPort(t)} {
		t.Run(what, func(t *testing.T) {
			conf := strings.Replace(quiet, "[WGSTUN]\nListen = off", "Open = yes\n[WGSTUN]\nListen = "+listen+"\nClient = "+static.Public().String()+" "+inner.String(), 1)
			c := setUp(t, strings.Replace(conf, "Open = yes\n", "", 1))
			c.Open = true
			r := start(t, c)
			o := *r.Offer().WGSTUN

			byV4 := newStock(t, static, o, inner, wgstun.ServerV4)
			if outer, port, err := byV4.ask(t, patience); err != nil || outer.String() != "127.0.0.1:"+port {
				t.Errorf("static client, socket at port %s: %v, %v", port, outer, err)
			}
			guest := newStock(t, visitor, o, wgstun.AddressOf(visitor.Public()), wgstun.ServerV6)
			if outer, _, err := guest.ask(t, 500*time.Millisecond); err == nil {
				t.Errorf("a key that is not at the relay got %v", outer)
			}
			dial(t, visitor, r)
			eventually(t, "the visitor known", func() bool { n, _ := r.wgstun.figures(); return n == 2 })
			guest.dev.Close() // WireGuard tries a handshake again after five seconds only: a new one tries at once
			guest = newStock(t, visitor, o, wgstun.AddressOf(visitor.Public()), wgstun.ServerV6)
			if outer, port, err := guest.ask(t, patience); err != nil || outer.String() != "127.0.0.1:"+port {
				t.Errorf("visitor, socket at port %s: %v, %v", port, outer, err)
			}
			st := r.Status().WGSTUN
			if st.Answered < 2 || st.Clients != 2 || len(st.AddressesOf(static.Public())) != 2 || len(st.AddressesOf(visitor.Public())) != 1 {
				t.Errorf("status: %+v", st)
			}
		})
	}
}

func freeUDPPort(t *testing.T) string {
	t.Helper()
	return strconv.Itoa(testnet.FreePort())
}

// peerList is a tunnel that only knows its peers.
type peerList struct {
	mu      sync.Mutex // guards the following
	peers   map[wgkey.Public]tunnel.Peer
	changes int
	fail    bool
}

func (l *peerList) AddPeer(p tunnel.Peer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changes++; l.fail {
		return errors.New("no")
	}
	l.peers[p.PublicKey] = p
	return nil
}

func (l *peerList) RemovePeer(key wgkey.Public) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changes++
	delete(l.peers, key)
	return nil
}

func (l *peerList) Close() error { return nil }

var denied = wgkey.Public{0xde}

// newPeerList returns a server of which nothing runs; settle does what its goroutine would.
func newPeerList(t *testing.T) (*wgServer, *peerList, *time.Time) {
	l := &peerList{peers: map[wgkey.Public]tunnel.Peer{}}
	s := newWGServer(l, func(key wgkey.Public) bool { return key != denied }, testLog(t))
	now := someDay
	s.now = func() time.Time { return now }
	return s, l, &now
}

func (s *wgServer) settle() {
	s.sweep()
	for s.step() {
	}
}

func TestVisitorsStayAWhile(t *testing.T) {
	s, l, now := newPeerList(t)
	key := wgkey.Public{1}
	has := func() bool { s.settle(); _, ok := l.peers[key]; return ok }
	s.presence(key, true)
	if !has() {
		t.Fatal("not added when it connected")
	}
	want := netip.PrefixFrom(wgstun.AddressOf(key), 128)
	if p := l.peers[key]; len(p.AllowedIPs) != 1 || p.AllowedIPs[0] != want {
		t.Errorf("addresses: %v", p.AllowedIPs)
	}
	*now = now.Add(24 * time.Hour)
	if !has() {
		t.Error("removed while connected")
	}
	s.presence(key, false)
	*now = now.Add(lingerTime)
	if !has() {
		t.Error("removed at once")
	}
	s.presence(key, true)
	*now = now.Add(time.Hour)
	if !has() {
		t.Error("removed although it came back")
	}
	s.presence(key, false)
	*now = now.Add(lingerTime + time.Second)
	if has() {
		t.Error("still there after its time")
	}
	if l.changes != 2 {
		t.Errorf("%d changes of the tunnel", l.changes)
	}
}

func TestWhoIsDeniedIsOutAtOnce(t *testing.T) {
	s, l, _ := newPeerList(t)
	allowed := true
	s.admits = func(key wgkey.Public) bool { return allowed || key != denied }
	other := wgkey.Public{1}
	s.presence(denied, true)
	s.presence(other, true)
	if s.settle(); len(l.peers) != 2 {
		t.Fatalf("peers: %v", l.peers)
	}
	allowed = false
	s.setFixed(nil)
	s.settle()
	if _, is := l.peers[other]; !is {
		t.Error("the other one is out")
	}
	s.presence(denied, false)
	if s.settle(); len(l.peers) != 1 || s.more != 1 {
		t.Errorf("peers: %v, visitors %d", l.peers, s.more)
	}
	s.presence(denied, true) // told late
	s.presence(denied, false)
	if s.settle(); len(l.peers) != 1 {
		t.Errorf("peers: %v", l.peers)
	}
}

func TestFixedPeersAreThereAlways(t *testing.T) {
	s, l, now := newPeerList(t)
	listed, named, self := wgkey.Public{1}, wgkey.Public{2}, newKey(t)
	inner := netip.MustParseAddr("100.64.1.7")
	conf := &config.RelayConfig{}
	conf.WGSTUN.Key.Private = self
	conf.WGSTUN.Clients = []config.WGSTUNClient{{Key: named, Address: inner}}
	with := &rules{names: map[wgkey.Public]string{listed: "laptop", named: "", self.Public(): "the server's own key"}}
	s.public = self.Public()
	s.setFixed(fixedPeers(conf, with))
	s.presence(self.Public(), true)
	s.settle()
	if len(l.peers) != 2 || len(l.peers[named].AllowedIPs) != 2 || l.peers[named].AllowedIPs[1] != netip.PrefixFrom(inner, 32) {
		t.Errorf("peers: %v", l.peers)
	}
	changes := l.changes
	s.setFixed(fixedPeers(conf, with))
	if s.settle(); l.changes != changes {
		t.Error("the same list again changes something")
	}
	s.presence(listed, true)
	s.presence(listed, false)
	*now = now.Add(time.Hour)
	if s.settle(); len(l.peers) != 2 || l.changes != changes {
		t.Errorf("one who came and went: %v", l.peers)
	}
	s.setFixed(fixedPeers(&config.RelayConfig{}, &rules{}))
	if s.settle(); len(l.peers) != 0 {
		t.Errorf("left: %v", l.peers)
	}
}

func TestVisitorsAreBounded(t *testing.T) {
	s, l, now := newPeerList(t)
	key := func(i int) wgkey.Public { return wgkey.Public{1, byte(i >> 8), byte(i)} }
	for i := range maxVisitors {
		s.presence(key(i), true)
	}
	s.presence(wgkey.Public{2}, true)
	s.settle()
	if _, refused := s.figures(); len(l.peers) != maxVisitors || refused != 1 {
		t.Errorf("%d peers, %d refused", len(l.peers), refused)
	}
	s.presence(wgkey.Public{2}, false) // who found no room leaves none
	s.presence(key(7), false)
	s.presence(wgkey.Public{3}, true) // takes the place of the one that has left
	s.settle()
	_, old := l.peers[key(7)]
	if _, is := l.peers[wgkey.Public{3}]; !is || old || len(l.peers) != maxVisitors {
		t.Errorf("%d peers, new %v, old %v", len(l.peers), is, old)
	}
	for i := range maxVisitors {
		s.presence(key(i), false)
	}
	s.presence(wgkey.Public{3}, false)
	*now = now.Add(time.Hour)
	if s.settle(); len(l.peers) != 0 || len(s.visitors) != 0 {
		t.Errorf("%d peers and %d visitors are left", len(l.peers), len(s.visitors))
	}
}

// A list that grows too long for all of its keys to be known takes nobody away who is connected.
func TestLongListLeavesThoseWhoAreConnected(t *testing.T) {
	s, l, _ := newPeerList(t)
	list := &rules{names: map[wgkey.Public]string{}}
	key := func(i int) wgkey.Public { return wgkey.Public{1, byte(i >> 8), byte(i)} }
	for i := range maxListed {
		list.names[key(i)] = ""
	}
	s.setFixed(fixedPeers(&config.RelayConfig{}, list))
	s.presence(key(7), true)
	if s.settle(); len(l.peers) != maxListed {
		t.Errorf("%d peers", len(l.peers))
	}
	list.names[wgkey.Public{3}] = ""
	s.setFixed(fixedPeers(&config.RelayConfig{}, list))
	s.presence(wgkey.Public{3}, true)
	s.settle()
	if _, is := l.peers[key(7)]; !is || len(l.peers) != 2 {
		t.Errorf("%d peers, the one connected: %v", len(l.peers), is)
	}
}

func TestPeerThatCannotBeAddedIsTriedAgain(t *testing.T) {
	s, l, _ := newPeerList(t)
	key := wgkey.Public{1}
	l.fail = true
	s.presence(key, true)
	s.settle()
	l.fail = false
	s.presence(key, true)
	if s.settle(); len(l.peers) != 1 {
		t.Errorf("peers: %v", l.peers)
	}
}
