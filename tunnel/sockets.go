package tunnel

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
)

// maxSockets bounds the sockets of OpenSocket that are open at a time.
const maxSockets = 300

// OpenSocket opens a UDP socket beside WireGuard's own, for IPv4 or IPv6 (family 4 or 6), on a port of the system's choice
// if port is zero. It returns its number for Way and SendFrom, from 1 and never used again, and its port. What arrives at it
// is treated as what arrives at WireGuard's own; it is made as fast when a route accepts a way that uses it, and costs little
// before. At most 300 can be open. The tunnel must be started; the sockets are closed with it.
func (t *Tunnel) OpenSocket(family uint8, port uint16) (id uint32, local uint16, err error) {
	if id, local, err = t.wire.openSocket(family, port); err != nil {
		return 0, 0, fmt.Errorf("open UDP socket: IPv%d, port %d: %w", family, port, err)
	}
	return id, local, nil
}

// CloseSocket closes a socket of OpenSocket. Nothing happens for one that is not open. A peer that is reached by way of it is
// reached by the relay from then on, and routes no longer accept ways that use it.
func (t *Tunnel) CloseSocket(id uint32) { t.wire.closeSocket(id) }

// sideSocket is a UDP socket of one family beside those of the bind. Receiving has two halves: wait may run on another
// goroutine than take, but not at the same time.
type sideSocket interface {
	localPort() uint16
	wait() error                                                             // until there is something to take; net.ErrClosed when closed
	take(bufs [][]byte, sizes []int, eps []conn.Endpoint) (n int, left bool) // into buffers of the caller; left: take again
	send(bufs [][]byte, to conn.Endpoint) error
	sendTTL(msg []byte, to conn.Endpoint, ttl uint8) error // as SendFrom
	speedUp()                                              // make it as fast as those of the bind; more than once is harmless
	close() error
}

// sockets are those beside the bind's. They stay open when wireguard-go closes and opens the bind.
type sockets struct {
	ready chan *socket // those that have something to be taken; made with the first socket's receiver
	once  sync.Once
	cur   *socket // of which the rest is still to be taken; the receiver's

	mu     sync.Mutex // guards the following
	open   map[uint32]*socket
	last   uint32
	closed bool
	ended  sync.WaitGroup
}

type socket struct {
	id     uint32
	family uint8
	sideSocket
	routed bool          // a route accepts, or has accepted, a way by it; guarded by sockets.mu until it is removed
	taken  chan struct{} // sent to when all that was waiting has been taken; one fits
	done   chan struct{} // closed with the socket

	heard *socketEndpoint // the last sender; the receiver's
}

// socketEndpoint is the endpoint of a socket of OpenSocket, by that of the bind. It is what such a way looks like to
// wireguard-go where no route hides it.
type socketEndpoint struct {
	conn.Endpoint
	socket *socket
	owner  ownerTag
}

// DstToBytes implements conn.Endpoint. The same address from another socket is another way.
func (e *socketEndpoint) DstToBytes() []byte {
	id := e.socket.id
	return append(e.Endpoint.DstToBytes(), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func (w *wire) openSocket(family uint8, port uint16) (id uint32, local uint16, err error) {
	if family != 4 && family != 6 {
		return 0, 0, errors.New("the family is 4 or 6")
	}
	if w.link == nil {
		return 0, 0, errors.New("the tunnel has no relay")
	}
	if w.port() == 0 {
		return 0, 0, errNotStarted
	}
	if w.sockets.count() >= maxSockets {
		return 0, 0, fmt.Errorf("%d are open already", maxSockets)
	}
	s, err := openSideSocket(w.Bind, family, port)
	if errors.Is(err, syscall.EACCES) && port != 0 && port < 1024 {
		err = fmt.Errorf("%w: ports below 1024 need the capability CAP_NET_BIND_SERVICE, or a lower sysctl net.ipv4.ip_unprivileged_port_start", syscall.EACCES)
	}
	if err != nil {
		return 0, 0, err
	}
	h, err := w.sockets.add(family, s)
	if err != nil {
		s.close()
		return 0, 0, err
	}
	go func() {
		defer w.sockets.ended.Done()
		if err := h.run(w.sockets.ready); err != nil {
			w.log.Warn("UDP socket beside WireGuard's failed", keyPort, h.localPort(), keyErr, err)
			w.closeSocket(h.id)
		}
	}()
	return h.id, h.localPort(), nil
}

// closeSocket closes a socket of openSocket, if it is open. No new route finds it from the first step on.
func (w *wire) closeSocket(id uint32) {
	if h := w.sockets.remove(id); h != nil {
		if h.routed {
			w.link.dropSocket(id)
		}
		h.end()
	}
}

func (s *sockets) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// add gives a socket its number. Its goroutine is counted in ended.
func (s *sockets) add(family uint8, sock sideSocket) (*socket, error) {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	if s.open == nil {
		s.open = map[uint32]*socket{}
	}
	s.last++
	h := &socket{id: s.last, family: family, sideSocket: sock, taken: make(chan struct{}, 1), done: make(chan struct{})}
	s.open[h.id] = h
	s.ended.Add(1)
	return h, nil
}

func (s *sockets) init() { s.once.Do(func() { s.ready = make(chan *socket) }) }

// find returns an open socket, nil if there is none with this number.
func (s *sockets) find(id uint32) *socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[id]
}

// forRoute returns an open socket as find does, and notes that there is a route by it: before remove, or not at all.
func (s *sockets) forRoute(id uint32) *socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.open[id]
	if h != nil {
		h.routed = true
	}
	return h
}

// remove takes an open socket out, to be closed by the caller; nil if there is none with this number.
func (s *sockets) remove(id uint32) *socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.open[id]
	delete(s.open, id)
	return h
}

// closeAll closes all for good and returns when their goroutines have ended.
func (s *sockets) closeAll() {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for _, h := range open {
		h.end()
	}
	s.ended.Wait()
}

// end closes the socket. It is called once, by whoever took it out of the map.
func (h *socket) end() {
	close(h.done)
	h.close()
}

// run hands the socket to the receiver whenever something has come, until it is closed.
func (h *socket) run(ready chan<- *socket) error {
	for {
		if err := h.wait(); errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		select {
		case ready <- h:
		case <-h.done:
			return nil
		}
		select {
		case <-h.taken:
		case <-h.done:
			return nil
		}
	}
}

// receiver returns the ReceiveFunc for all sockets, which ends when done is closed: wireguard-go takes its ReceiveFuncs when it
// opens the bind, and no more later. Only one may be in use at a time.
func (s *sockets) receiver(done <-chan struct{}) conn.ReceiveFunc {
	s.init()
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-done:
			return 0, net.ErrClosed
		default:
		}
		if s.cur == nil {
			select {
			case <-done:
				return 0, net.ErrClosed
			case s.cur = <-s.ready:
			}
		}
		h := s.cur
		n, left := h.take(bufs, sizes, eps)
		for i := range n {
			eps[i] = h.from(eps[i])
		}
		if !left {
			s.cur = nil
			h.taken <- struct{}{}
		}
		return n, nil
	}
}

// from returns the endpoint for a sender, the same one for packet after packet.
func (h *socket) from(e conn.Endpoint) *socketEndpoint {
	if h.heard == nil || h.heard.Endpoint != e {
		h.heard = &socketEndpoint{Endpoint: e, socket: h}
	}
	return h.heard
}
