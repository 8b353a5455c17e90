package hostsock

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxLoops   = 4   // by default; more gain nothing, since the tunnel behind them encrypts
	maxLarge   = 256 // large buffers in flight, over all loops: 16 MiB
	maxEvents  = 64  // of one epoll_wait
	maxErrors  = 16  // entries of an error queue read before other sockets get a turn
	errorQuote = 2 << 10
)

// Poller serves many datagram sockets with a few goroutines, its loops. A socket stays with the loop it was given to, so
// the order within a flow is kept; an idle socket holds no buffer and no goroutine.
//
// Each loop has an epoll set, level-triggered, whose own descriptor lies in the Go runtime's poller.
type Poller struct {
	loops []*loop
	next  atomic.Uint32 // loop of the next socket
	done  atomic.Bool   // closed
	small *BufPool
	sends sync.Pool // of *transmit

	truncated, silent, stalls atomic.Uint64
}

// loop is one goroutine and its sockets. Fields without a word on locking belong to the goroutine.
type loop struct {
	poller *Poller
	file   *os.File // the epoll set; its methods guard against the use of a closed descriptor
	raw    syscall.RawConn
	large  slabs
	rx     receive
	rxErr  errorReader

	wait    func(fd uintptr) bool // fills events; kept because a new closure per call would allocate
	events  [maxEvents]unix.EpollEvent
	ready   int   // how many events are valid
	fault   error // why epoll_wait failed
	hurry   bool  // stalled sockets may go on: do not sleep
	stalled []*sock

	mu    sync.Mutex // guards the following
	socks map[uint64]*sock
	ids   uint64
}

// NewPoller starts loops goroutines; with 0 as many as there are processors, at most four.
func NewPoller(loops int) (*Poller, error) {
	if loops <= 0 {
		loops = min(runtime.GOMAXPROCS(0), maxLoops)
	}
	p := &Poller{small: NewBufPool(smallSize)}
	p.sends.New = func() any { return newTransmit() }
	for range loops {
		l, err := newLoop(p, max(maxLarge/loops, 1))
		if err != nil {
			p.Close()
			return nil, err
		}
		p.loops = append(p.loops, l)
	}
	for _, l := range p.loops {
		go l.run()
	}
	return p, nil
}

func newLoop(p *Poller, large int) (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else os.NewFile would not put it into the runtime's poller
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	l := &loop{poller: p, file: os.NewFile(uintptr(fd), "epoll"), socks: map[uint64]*sock{}}
	l.wait = l.poll
	l.large.init(large, l.wake)
	l.rx.init()
	l.rxErr.init(errorQuote)
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// Close stops the loops: no event is handed over any more, but a call that had begun may still run. The sockets stay
// open, can send, and are closed by their owners. Close may be called again, and from within a Receiver.
func (p *Poller) Close() {
	p.done.Store(true)
	for _, l := range p.loops {
		l.file.Close()
	}
}

// Stats returns the counters.
func (p *Poller) Stats() Stats {
	return Stats{Truncated: p.truncated.Load(), SilentErrors: p.silent.Load(), Stalls: p.stalls.Load()}
}

// add makes a loop serve s from now on.
func (p *Poller) add(s *sock) error {
	l := p.loops[p.next.Add(1)%uint32(len(p.loops))]
	l.mu.Lock()
	l.ids++
	s.loop, s.id = l, l.ids
	l.socks[s.id] = s
	l.mu.Unlock()
	if err := l.control(unix.EPOLL_CTL_ADD, s, unix.EPOLLIN); err != nil {
		l.remove(s)
		return err
	}
	return nil
}

// control changes the epoll set. The caller knows that s.fd is open.
func (l *loop) control(op int, s *sock, events uint32) error {
	// EPOLLERR needs no asking for and cannot be turned off.
	ev := unix.EpollEvent{Events: events, Fd: int32(s.id), Pad: int32(s.id >> 32)}
	var failed error
	if err := l.raw.Control(func(fd uintptr) { failed = unix.EpollCtl(int(fd), op, s.fd, &ev) }); err != nil {
		return os.ErrClosed
	}
	return os.NewSyscallError("epoll_ctl", failed)
}

func (l *loop) remove(s *sock) {
	l.mu.Lock()
	delete(l.socks, s.id)
	l.mu.Unlock()
}

func (l *loop) lookup(ev *unix.EpollEvent) *sock {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.socks[uint64(uint32(ev.Pad))<<32|uint64(uint32(ev.Fd))]
}

// run serves events until the poller is closed.
func (l *loop) run() {
	defer l.rx.drop()
	for {
		l.ready = 0
		switch err := l.raw.Read(l.wait); {
		case err == nil && l.fault == nil:
		case errors.Is(err, os.ErrDeadlineExceeded): // wake
			l.file.SetReadDeadline(time.Time{})
		default:
			return
		}
		for i := range l.events[:l.ready] {
			if l.poller.done.Load() {
				return
			}
			ev := &l.events[i]
			s := l.lookup(ev)
			if s == nil { // closed by the Receiver of an event before it
				continue
			}
			if ev.Events&unix.EPOLLERR != 0 {
				l.drainErrors(s)
			}
			if ev.Events&unix.EPOLLIN != 0 && !s.stalled {
				l.drainData(s)
			}
		}
		l.resume()
	}
}

// poll is what RawConn.Read calls until it returns true.
func (l *loop) poll(fd uintptr) bool {
	for {
		n, err := unix.EpollWait(int(fd), l.events[:], 0)
		if err == unix.EINTR {
			continue
		}
		l.ready, l.fault = max(n, 0), err
		return n != 0 || l.hurry
	}
}

// wake ends the sleep of the loop, or its next one. A deadline needs no further descriptor, and is safe after Close.
func (l *loop) wake() { l.file.SetReadDeadline(time.Unix(1, 0)) }

// stall takes s out of the epoll set, which is level-triggered and would report it for ever, until resume.
func (l *loop) stall(s *sock) {
	l.poller.stalls.Add(1)
	l.stalled = append(l.stalled, s)
	l.listen(s, 0)
	s.stalled = true
}

// resume goes on with stalled sockets, in the order they stalled, while there are large buffers. If some remain stalled
// there either are none, and the next one released wakes the loop, or the loop does not sleep.
func (l *loop) resume() {
	l.hurry = false
	for turns := len(l.stalled); turns > 0 && l.largeAvailable() && !l.poller.done.Load(); turns-- {
		s := l.stalled[0]
		l.stalled = slices.Delete(l.stalled, 0, 1)
		s.stalled = false
		if l.drainData(s); !s.stalled {
			l.listen(s, unix.EPOLLIN)
		}
	}
	if len(l.stalled) > 0 {
		l.hurry = l.largeAvailable() || !l.large.await()
	}
}

func (l *loop) largeAvailable() bool { return l.rx.held() > 0 || l.large.available() }

// listen sets what s waits for; nothing happens if it is closed.
func (l *loop) listen(s *sock, events uint32) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd >= 0 {
		l.control(unix.EPOLL_CTL_MOD, s, events) // fails only when the poller closes
	}
}
