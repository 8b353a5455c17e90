package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun/netstack"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/traversal/relay/relayserver"
	"culvert.dev/culvert/tunnel"
)

// testRelay is a relay on loopback with a certificate of its own. It may stop and start again at the same place.
type testRelay struct {
	key  wgkey.Private
	cert tls.Certificate
	pin  relay.Pin
	addr string

	mu       sync.Mutex // guards the following
	admitted map[wgkey.Public]bool
	server   *relayserver.Server
	stop     func()
}

// newRelay starts a relay that admits the sides.
func newRelay(t *testing.T, sides ...side) *testRelay {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	r := &testRelay{
		cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer}, pin: relay.PinOf(leaf),
		addr: "127.0.0.1:0", admitted: map[wgkey.Public]bool{},
	}
	if r.key, err = wgkey.NewPrivate(); err != nil {
		t.Fatal(err)
	}
	for _, s := range sides {
		r.admitted[s.key.Public()] = true
	}
	r.start(t)
	t.Cleanup(func() { r.close() })
	return r
}

func (r *testRelay) start(t *testing.T) {
	t.Helper()
	s, err := relayserver.New(relayserver.Config{Key: r.key, Admit: r.admit})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	chain := r.cert
	chain.Certificate = append([][]byte{r.cert.Certificate[0]}, s.MetaCertificate())
	h := s.HTTPServer()
	served := make(chan struct{})
	go func() {
		defer close(served)
		h.Serve(tls.NewListener(s.Listener(l), &tls.Config{Certificates: []tls.Certificate{chain}}))
	}()
	r.addr = l.Addr().String()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.server = s
	r.stop = func() {
		h.Close()
		s.Close()
		<-served
	}
}

func (r *testRelay) admit(key wgkey.Public, _ netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.admitted[key] {
		return errors.New("not on the list")
	}
	return nil
}

// close stops the relay and returns when nobody uses its port any more.
func (r *testRelay) close() {
	r.mu.Lock()
	stop := r.stop
	r.stop = nil
	r.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (r *testRelay) url() string { return "https://" + r.addr }

// section is what a node needs to use the relay.
func (r *testRelay) section() string {
	return fmt.Sprintf("[Relay]\nURL = %s\nPin = %s\n", r.url(), r.pin)
}

// asDistantPeer is asPeer for a side of which only the key is known.
func (s side) asDistantPeer(name, more string) string {
	return fmt.Sprintf("[Peer]\nName = %s\nPublicKey = %s\nAllowedIPs = %s/32\nPersistentKeepalive = 1\n%s", name, s.key.Public(), s.addr, more)
}

// device is a WireGuard client with programs of its own, which knows one node by its endpoint on loopback.
type device struct {
	net *netstack.Net
}

func startDevice(t *testing.T, self, node side, allowed string) device {
	t.Helper()
	tun, stack, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr(self.addr)}, nil, 1420)
	if err != nil {
		t.Fatal(err)
	}
	w, err := tunnel.New(tun, tunnel.Config{PrivateKey: self.key, AnyPort: true, Peers: []tunnel.Peer{{
		PublicKey: node.key.Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix(allowed)}, Endpoint: fmt.Sprintf("127.0.0.1:%d", node.port),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	return device{stack}
}
