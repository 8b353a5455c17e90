package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// wire stands between wireguard-go and the socket: every datagram of the tunnel passes it in both directions. It chooses
// the port and tells the messages apart by their first byte; handshake messages go to handshakes, transport messages pass
// at the cost of one compare. It changes no bytes and no endpoints.
type wire struct {
	conn.Bind
	log     *slog.Logger
	shakes  *handshakes
	fixed   uint16             // the port to open; zero: choose
	ports   []uint16           // tried in this order when there is a choice
	failing func(wgkey.Public) // called for a peer that does not answer; must not block
	opened  atomic.Uint32      // the port; zero while closed
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
		fns[i] = w.receiver(fn)
	}
	w.opened.Store(uint32(actual))
	return fns, actual, nil
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

// Close implements conn.Bind.
func (w *wire) Close() error {
	w.opened.Store(0)
	return w.Bind.Close()
}

// port returns the port that is open, zero if none is.
func (w *wire) port() uint16 { return uint16(w.opened.Load()) }

// receiver wraps a ReceiveFunc. This is where what shares the socket with WireGuard is told apart.
func (w *wire) receiver(recv conn.ReceiveFunc) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := recv(bufs, sizes, eps)
		var now time.Time
		confirm := w.shakes.unconfirmed.Load() > 0
		if confirm {
			now = time.Now()
		}
		for i := range n {
			if sizes[i] == 0 {
				continue
			}
			if bufs[i][0] == typeTransport {
				if confirm && sizes[i] >= transportMinLen {
					w.shakes.gotTransport(receiverIndex(bufs[i]), now)
				}
				continue
			}
			if !w.handshake(bufs[i][:sizes[i]], eps[i]) {
				sizes[i] = 0
			}
		}
		return n, err
	}
}

// handshake reports whether wireguard-go shall see an incoming message that is not a transport message.
func (w *wire) handshake(msg []byte, from conn.Endpoint) bool {
	if w.shakes.unanswered.Load() == 0 {
		return true
	}
	switch {
	case msg[0] == typeInitiation && len(msg) == initiationLen:
		v, ours := w.shakes.gotInitiation(msg, string(from.DstToBytes()), time.Now())
		if v == insist {
			if err := w.Bind.Send([][]byte{ours}, from); err != nil {
				w.log.Debug("initiation not repeated", keyErr, err)
			}
		}
		return v == letIn
	case msg[0] == typeResponse && len(msg) == responseLen, msg[0] == typeCookie && len(msg) == cookieLen:
		w.shakes.gotAnswer(msg, time.Now())
	}
	return true
}

// Send implements conn.Bind. wireguard-go sends each handshake message alone.
func (w *wire) Send(bufs [][]byte, to conn.Endpoint) error {
	if len(bufs) == 1 && len(bufs[0]) > 0 && bufs[0][0] != typeTransport {
		w.sent(bufs[0], to)
	}
	return w.Bind.Send(bufs, to)
}

func (w *wire) sent(msg []byte, to conn.Endpoint) {
	switch {
	case msg[0] == typeInitiation && len(msg) == initiationLen:
		if key, failing := w.shakes.sentInitiation(msg, string(to.DstToBytes()), time.Now()); failing {
			w.failing(key)
		}
	case msg[0] == typeResponse && len(msg) == responseLen:
		w.shakes.sentResponse(msg, string(to.DstToBytes()), time.Now())
	}
}
