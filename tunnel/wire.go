package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// wire stands between wireguard-go and the socket: every datagram of the tunnel passes it in both directions. It chooses
// the port and tells the messages apart by their first byte; handshake messages go to handshakes, transport messages pass
// at the cost of one compare. It changes no messages.
//
// It adds the relay, as endpoints beside those of the socket, further sockets, routes, and the side channel.
type wire struct {
	conn.Bind
	log         *slog.Logger
	shakes      *handshakes
	link        *relayLink         // nil: no relay
	stamp       bool               // as Config.Stamp
	answersOnly bool               // as Config.AnswersOnly: shakes knows no peers
	fixed       uint16             // the port to open; zero: choose
	ports       []uint16           // tried in this order when there is a choice
	failing     func(wgkey.Public) // called for a peer that does not answer by UDP; must not block
	initiate    func(wgkey.Public) // begins a handshake with a peer
	side        atomic.Pointer[func(msg []byte, socket uint32, from netip.AddrPort)]
	sealed      atomic.Pointer[func(packet []byte, from wgkey.Public)]
	sockets     sockets
	opened      atomic.Uint32 // the port; zero while closed
	held        heldBack
	in, out     *flight      // packets that wireguard-go has; nil: not counted
	byUDP       atomic.Int64 // data sent by UDP

	mu   sync.Mutex    // guards the following
	done chan struct{} // closed by Close; nil while closed, and without a relay
}

// Open implements conn.Bind. wireguard-go asks for port zero at first, and for the one it got when it opens again.
func (w *wire) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if w.fixed != 0 {
		port = w.fixed
	}
	fns, actual, err := w.open(port)
	if err != nil {
		return nil, 0, err
	}
	for i, fn := range fns {
		fns[i] = w.receiver(fn, addrPortOf, true)
	}
	if w.link != nil {
		done := w.renewDone()
		fns = append(fns, w.receiver(w.link.receiver(done), noSource, false), w.receiver(w.sockets.receiver(done), addrPortOf, true))
	}
	w.opened.Store(uint32(actual))
	w.in.open(true)
	return fns, actual, nil
}

// renewDone ends what receives from the relay, if anything does, and returns the channel that ends what comes next.
func (w *wire) renewDone() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done != nil {
		close(w.done)
	}
	w.done = make(chan struct{})
	return w.done
}

// open opens the given port, or for zero the first free one of w.ports, or any if none is.
func (w *wire) open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if port != 0 {
		fns, actual, err := w.Bind.Open(port)
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("listen on UDP port %d: %w: stop the program that uses it, set another ListenPort, or leave ListenPort out to have one derived from the key", port, syscall.EADDRINUSE)
		} else if err != nil {
			err = fmt.Errorf("listen on UDP port %d: %w", port, err)
		}
		return fns, actual, err
	}
	for i, p := range w.ports {
		fns, actual, err := w.Bind.Open(p)
		if err == nil {
			if i > 0 {
				w.log.Warn("listening on another port than usual: the usual one is taken", keyPort, actual, keyUsual, w.ports[0])
			}
			return fns, actual, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, 0, fmt.Errorf("listen on UDP port %d: %w", p, err)
		}
	}
	fns, actual, err := w.Bind.Open(0)
	if err != nil {
		return nil, 0, fmt.Errorf("listen on any UDP port: %w", err)
	}
	return fns, actual, nil
}

// Close implements conn.Bind. wireguard-go then waits for who receives, and meanwhile sends nothing, for which in turn may wait
// who would let the receiver go on.
func (w *wire) Close() error {
	w.opened.Store(0)
	w.in.open(false)
	w.mu.Lock()
	if w.done != nil {
		close(w.done)
		w.done = nil
	}
	w.mu.Unlock()
	return w.Bind.Close()
}

// ParseEndpoint implements conn.Bind, for relay endpoints beside those of the socket.
func (w *wire) ParseEndpoint(s string) (conn.Endpoint, error) {
	if key, ok := parseRelayText(s); ok {
		return w.link.parse(key)
	}
	return w.Bind.ParseEndpoint(s)
}

// port returns the port that is open, zero if none is.
func (w *wire) port() uint16 { return uint16(w.opened.Load()) }

// receiver wraps a ReceiveFunc. This is where what shares the socket with WireGuard is told apart. source is for stamping.
// byUDP says that what is received came by UDP, and so perhaps by a way that a route accepts.
func (w *wire) receiver(recv conn.ReceiveFunc, source func(conn.Endpoint) netip.AddrPort, byUDP bool) conn.ReceiveFunc {
	if w.stamp {
		recv = stamping(recv, source)
	}
	in := entrance{flight: w.in}
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		in.wait()
		n, err := recv(bufs, sizes, eps)
		var now time.Time
		confirm := w.shakes.unconfirmed.Load() > 0
		if confirm {
			now = time.Now()
		}
		generation := uint64(0)
		if byUDP {
			generation = w.link.generation()
		}
		var count tally
		data := 0
		for i := range n {
			if sizes[i] == 0 {
				continue
			}
			if bufs[i][0] == typeTransport {
				data++
				if confirm && sizes[i] >= transportMinLen {
					w.confirmed(receiverIndex(bufs[i]), eps[i], now)
				}
			} else if !w.special(bufs[i][:sizes[i]], eps[i]) {
				sizes[i] = 0
				continue
			}
			if generation == 0 {
				continue
			}
			if e, late := w.link.ownerOf(eps[i], generation); e != nil && e.isFor(bufs[i][:sizes[i]]) {
				eps[i] = e.heardAt(late)
				if !late {
					count.count(&e.traffic.rxWay)
				}
			}
		}
		count.end()
		in.enter(data)
		return n, err
	}
}

// special reports whether wireguard-go shall see an incoming message that is not a transport message.
func (w *wire) special(msg []byte, from conn.Endpoint) bool {
	if isSide(msg) {
		w.giveSide(msg, from)
		return false
	}
	if w.shakes.unanswered.Load() == 0 && w.shakes.refusals.Load() == 0 {
		return true
	}
	switch {
	case msg[0] == typeInitiation && len(msg) == initiationLen:
		endpoint := string(from.DstToBytes())
		if g := w.link.generation(); g != 0 {
			if e, _ := w.link.ownerOf(from, g); e != nil {
				w.shakes.isWayOf(endpoint, e.key)
			}
		}
		v, ours := w.shakes.gotInitiation(msg, endpoint, time.Now())
		if v == insist {
			w.carryInitiation(ours, from)
		}
		return v == letIn
	case msg[0] == typeResponse && len(msg) == responseLen, msg[0] == typeCookie && len(msg) == cookieLen:
		now := time.Now()
		if key, ok := w.shakes.gotAnswer(msg, string(from.DstToBytes()), now); ok {
			w.settle(key, receiverIndex(msg), from, now)
			if w.shakes.hasBecomeRelayed(key) {
				w.seekUDP(key, seekLater)
			}
		}
	}
	return true
}

// confirmed notes a transport message that may be the first of its session.
func (w *wire) confirmed(index uint32, from conn.Endpoint, now time.Time) {
	_, relayed := from.(*relayEndpoint)
	if key, ok := w.shakes.gotTransport(index, relayed, now); ok {
		w.settle(key, index, from, now)
	}
}

// settle notes where a peer's newest session was made.
func (w *wire) settle(key wgkey.Public, index uint32, at conn.Endpoint, now time.Time) {
	if e := w.link.of(key); e != nil {
		e.sessions.add(index)
		e.settle(index, at, now)
	}
}

// Send implements conn.Bind. wireguard-go sends each handshake message and each keepalive alone.
func (w *wire) Send(bufs [][]byte, to conn.Endpoint) error {
	if isData(bufs) {
		w.out.leaves(len(bufs))
		defer w.out.leave(len(bufs))
	}
	if len(bufs) == 1 && len(bufs[0]) > 0 && bufs[0][0] != typeTransport && !w.answersOnly {
		switch msg := bufs[0]; {
		case msg[0] == typeInitiation && len(msg) == initiationLen:
			return w.sendInitiation(msg, to)
		case msg[0] == typeResponse && len(msg) == responseLen:
			return w.sendResponse(msg, to)
		}
	}
	if e, ok := to.(*relayEndpoint); ok {
		return w.sendRouted(bufs, e)
	}
	return w.carry(bufs, to)
}

// sendRouted sends datagrams for a peer by its route. By UDP first: the relay may take its time. What the socket does not take
// goes by the relay, perhaps for the second time: the peer drops what it has had.
func (w *wire) sendRouted(bufs [][]byte, e *relayEndpoint) error {
	e.traffic.tx.Add(uint64(len(bufs)))
	r := e.route.Load()
	if r == nil || r.raw == nil {
		return w.carry(bufs, e)
	}
	sent := w.carry(bufs, r.raw) == nil
	switch {
	case sent && r.via == ViaBoth:
		w.relayed(bufs, e) // nothing is lost where it is not taken
	case !sent:
		return w.carry(bufs, e)
	}
	return nil
}

// isData tells packets from what wireguard-go sends by itself.
func isData(bufs [][]byte) bool {
	return len(bufs) > 1 || len(bufs) == 1 && len(bufs[0]) > transportMinLen && bufs[0][0] == typeTransport
}

// carry sends datagrams by one way: that of the bind, that of another socket, or the relay.
func (w *wire) carry(bufs [][]byte, to conn.Endpoint) error {
	if to, ok := to.(*relayEndpoint); ok {
		if !w.relayed(bufs, to) {
			w.link.lost.Add(uint64(len(bufs)))
		}
		return nil
	}
	if isData(bufs) {
		w.byUDP.Add(int64(len(bufs)))
	}
	switch to := to.(type) {
	case *socketEndpoint:
		return to.socket.send(bufs, to.Endpoint)
	}
	return w.Bind.Send(bufs, to)
}
