package node

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
)

// simClock makes the clock of one of two nodes differ, though there is only one here: it opens the messages that they seal for each
// other, changes the times in them, and seals them again, by the description in package exchange.
type simClock struct {
	ahead, other *simNode

	mu    sync.Mutex                         // guards the following
	by    time.Duration                      // that the clock of ahead is
	times map[wgkey.Public]map[uint64]uint64 // what was made of the send times of each node's messages, and what they were
	life  uint64                             // what makes the lives of ahead others
}

// skewClock sets the clock of a node ahead for its messages to and from another one, both by relay and by UDP.
func skewClock(ahead, other *simNode) *simClock {
	c := &simClock{ahead: ahead, other: other, times: map[wgkey.Public]map[uint64]uint64{ahead.public: {}, other.public: {}}}
	w := ahead.w
	w.relay.mu.Lock()
	defer w.relay.mu.Unlock()
	w.relay.tamper = func(from, _ wgkey.Public, packet []byte) []byte { return c.convert(from, packet) }
	for _, n := range []*simNode{ahead, other} {
		n.clock.Store(c)
	}
	return c
}

func (c *simClock) set(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by-by > exchange.MaxSkew { // a node takes new lives when its clock is set back by so much
		c.life++
	}
	c.by = by
}

// convert makes of a node's message what it would be if the clocks differed.
func (c *simClock) convert(from wgkey.Public, packet []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	sender, receiver, by := c.ahead, c.other, c.by
	if from != sender.public {
		sender, receiver, by = receiver, sender, -by
	}
	const outer = 6 + wgkey.Size
	private := sender.key.RevealBytes()
	secret, err := curve25519.X25519(private[:], receiver.public[:])
	if err != nil {
		panic(err)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "culvert exchange 1"+string(sender.public[:])+string(receiver.public[:]), chacha20poly1305.KeySize)
	if err != nil {
		panic(err)
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		panic(err)
	}
	data := append(append(append([]byte("TS\xf0\x9f\x92\xac"), 1), sender.public[:]...), receiver.public[:]...)
	plain, err := aead.Open(nil, packet[outer:outer+aead.NonceSize()], packet[outer+aead.NonceSize():], data)
	if err != nil {
		panic(err)
	}
	sent, heard := binary.BigEndian.Uint64(plain), binary.BigEndian.Uint64(plain[26:])
	made := uint64(int64(sent) + int64(by))
	c.times[sender.public][made] = sent
	binary.BigEndian.PutUint64(plain, made)
	life := 10 // of the sender
	if sender == c.other {
		life = 18 // of the receiver
	}
	if was := binary.BigEndian.Uint64(plain[life:]); was != 0 {
		binary.BigEndian.PutUint64(plain[life:], was^c.life)
	}
	if was, ok := c.times[receiver.public][heard]; ok {
		binary.BigEndian.PutUint64(plain[26:], was)
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	return aead.Seal(append(append([]byte(nil), packet[:outer]...), nonce...), nonce, plain, data)
}

// clockTransport has what a node seals and sends by UDP go through the simClock.
type clockTransport struct {
	agent.Transport
	n *simNode
}

// SendFrom implements agent.Transport.
func (t *clockTransport) SendFrom(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error {
	if c := t.n.clock.Load(); c != nil && exchange.Is(msg) {
		msg = c.convert(t.n.public, msg)
	}
	return t.Transport.SendFrom(socket, msg, to, ttl)
}

// TestSimulationOfClocks sets one node's clock while there is a path. That keeps the path. Messages are understood while the difference
// is below exchange.MaxSkew, and then again once it is: a path that was lost in between is found.
func TestSimulationOfClocks(t *testing.T) {
	for _, by := range []time.Duration{30 * time.Second, -30 * time.Second, 5 * time.Minute, -5 * time.Minute} {
		t.Run(by.String(), func(t *testing.T) {
			simulate(t, 29, func(w *simWorld) {
				a := w.home("a", testnet.PRC)
				x, y := w.node("x", a.Host, simConfig{}), w.node("y", w.home("b", testnet.PRCR).Host, simConfig{})
				c := skewClock(x, y)
				w.meet(x, y)
				x.ping(y, 5*time.Second)
				then := time.Now()
				f := w.flows(x, y, 100*ms)
				w.untilDirect("at first", x, y, 5*time.Second)
				time.Sleep(10 * time.Second)
				c.set(by)
				time.Sleep(simFor(5 * time.Minute))
				f.whole("clock set", then, 250*ms)
				if s := x.status(y); s.Fallbacks > 0 || s.Phase != path.Direct {
					t.Errorf("the path was given up\n%s", state(x, y))
				}
				a.uplink.Filter(onlySTUNServers, onlySTUNServers)
				time.Sleep(20 * time.Second)
				if direct(x, y) {
					t.Errorf("a path that is cut is in use\n%s", state(x, y))
				}
				a.uplink.Filter(nil, nil)
				took, ok := within(time.Minute, func() bool { return direct(x, y) })
				if understood := by.Abs() < exchange.MaxSkew; !ok && understood {
					t.Fatalf("not direct with clocks that differ by %v\n%s", by, state(x, y))
				} else if !ok {
					if x.status(y).ClockAhead == 0 && y.status(x).ClockAhead == 0 {
						t.Errorf("the status does not tell of the clocks\n%s", state(x, y))
					}
					c.set(0)
					took = w.untilDirect("with clocks that are right again", x, y, 3*time.Minute)
				}
				w.provesDirect(x, y)
				t.Logf("direct again %v after the path's return, or the clock's", took)
			})
		})
	}
}

// TestSimulationOfClocksThatNeverAgree: the nodes start with clocks that differ.
func TestSimulationOfClocksThatNeverAgree(t *testing.T) {
	for _, by := range []time.Duration{30 * time.Second, -55 * time.Second, 5 * time.Minute} {
		t.Run(by.String(), func(t *testing.T) {
			simulate(t, 31, func(w *simWorld) {
				x, y := w.node("x", w.home("a", testnet.PRC).Host, simConfig{}), w.node("y", w.home("b", testnet.PRCR).Host, simConfig{})
				c := skewClock(x, y)
				c.set(by)
				w.meet(x, y)
				w.flows(x, y, 100*ms)
				took, ok := within(30*time.Second, func() bool { return direct(x, y) })
				if understood := by.Abs() < exchange.MaxSkew; ok != understood {
					t.Fatalf("direct: %v, want %v\n%s", ok, understood, state(x, y))
				}
				if !ok {
					if x.status(y).ClockAhead == 0 && y.status(x).ClockAhead == 0 {
						t.Errorf("the status does not tell of the clocks\n%s", state(x, y))
					}
					c.set(0)
					took = w.untilDirect("with clocks that are right", x, y, 3*time.Minute)
				}
				w.provesDirect(x, y)
				t.Logf("direct after %v", took)
			})
		})
	}
}
