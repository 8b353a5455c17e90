package tunnel

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// maxSegments is the kernel's limit of datagrams in one segmented message (64 until 6.9, more since).
	maxSegments = 64
	// maxSegmented is the most bytes in one segmented message. The kernel takes 65507, but a message that reaches 64 KiB
	// with its headers is above the device's gso_max_size and is cut up in software on its way out: half the throughput.
	maxSegmented = 65000
	// plainBatches is for how long segmentation stays off towards a destination that refused it.
	plainBatches = 4096
)

// sendState is the scratch space of one Send.
type sendState struct {
	msgs  [conn.IdealBatchSize]mmsghdr
	iovs  [conn.IdealBatchSize]unix.Iovec // one per buffer
	ctls  [conn.IdealBatchSize]control
	first [conn.IdealBatchSize + 1]int // per message: its first buffer

	n, done int
	errno   syscall.Errno
	write   func(fd uintptr) bool // made once: a closure per call would be an allocation
}

func newSendState() *sendState {
	s := &sendState{}
	s.write = func(fd uintptr) bool {
		for s.done < s.n {
			r, _, errno := syscall.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[s.done])), uintptr(s.n-s.done), unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case 0:
				s.done += int(r)
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				s.errno = errno
				return true
			}
		}
		return true
	}
	return s
}

// Send implements conn.Bind. The buffers are read during the call only.
func (b *udpBind) Send(bufs [][]byte, endpoint conn.Endpoint) error {
	e, ok := endpoint.(*udpEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	sock := b.socketFor(e)
	if sock == nil {
		return syscall.EAFNOSUPPORT
	}
	s := b.send.Get().(*sendState)
	defer b.send.Put(s)
	for len(bufs) > 0 {
		n := min(len(bufs), conn.IdealBatchSize)
		if err := b.sendBatch(s, sock, e, bufs[:n]); err != nil {
			return err
		}
		bufs = bufs[n:]
	}
	return nil
}

// socketFor returns the socket of an endpoint's family, nil if there is none.
func (b *udpBind) socketFor(e *udpEndpoint) *udpSocket {
	if e.name.Family == unix.AF_INET {
		return b.v4.Load()
	}
	return b.v6.Load()
}

// sendBatch sends at most conn.IdealBatchSize buffers. A message that the kernel refuses for how it is sent is sent again
// in a simpler way, together with what stood behind it.
func (b *udpBind) sendBatch(s *sendState, sock *udpSocket, e *udpEndpoint, bufs [][]byte) error {
	segment, short, repeated := sock.gso.Load(), b.trains.short.Load(), false
	if segment && e.plain.Load() > 0 {
		e.plain.Add(-1)
		segment = false
	}
	for {
		withSource := e.hasSource()
		s.fill(bufs, e, segment, short, withSource)
		sent, segmented, err := s.flush(sock)
		if err == nil {
			return nil
		}
		bufs = bufs[sent:]
		switch simpler(s.errno, segmented, withSource) {
		case withoutOffload:
			segment = false
			if sock.gso.Swap(false) {
				b.log.Info("UDP segmentation offload disabled: the network device cannot checksum", keyLocal, sock.conn.LocalAddr().String())
			}
		case withoutSegments:
			segment = false
			e.plain.Store(plainBatches)
		case withoutSource:
			e.ClearSrc()
			e.plain.Store(0) // the source may have been the trouble all along
		default:
			if repeated || !pending(s.errno) {
				return err
			}
			repeated = true // the error was perhaps about an earlier packet
		}
	}
}

type remedy uint8

const (
	noRemedy remedy = iota
	withoutOffload
	withoutSegments
	withoutSource
)

// simpler decides how to repeat a message that failed with errno.
func simpler(errno syscall.Errno, segmented, withSrc bool) remedy {
	switch errno {
	case unix.EIO: // the device has no transmit checksum offload, which UDP_SEGMENT requires
		if segmented {
			return withoutOffload
		}
	case unix.EINVAL, unix.EMSGSIZE: // segments above the path MTU cannot be fragmented, plain datagrams can
		if segmented {
			return withoutSegments
		}
		if errno == unix.EINVAL && withSrc { // the address is gone from this host
			return withoutSource
		}
	case unix.ENODEV, unix.EADDRNOTAVAIL, unix.ENETUNREACH: // the interface or the way out of it is gone
		if withSrc {
			return withoutSource
		}
	}
	return noRemedy
}

// fill lays bufs out as messages: with segment set, runs of equally long buffers, of which the last may be shorter. See trains for short.
func (s *sendState) fill(bufs [][]byte, e *udpEndpoint, segment, short, withSource bool) {
	n := 0
	for i := 0; i < len(bufs); n++ {
		j := i + 1
		if segment {
			j += run(bufs[i:], short)
		}
		for k := i; k < j; k++ {
			s.iovs[k].Base = unsafe.SliceData(bufs[k])
			s.iovs[k].SetLen(len(bufs[k]))
		}
		m := &s.msgs[n]
		m.hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&e.name)), Namelen: e.name.len(), Iov: &s.iovs[i]}
		m.hdr.SetIovlen(j - i)
		used := 0
		if withSource {
			used = s.ctls[n].putSource(0, e.name.Family == unix.AF_INET, &e.src)
		}
		if j-i > 1 {
			used = s.ctls[n].putSegment(used, uint16(len(bufs[i])))
		}
		if used > 0 {
			m.hdr.Control = &s.ctls[n].b[0]
			m.hdr.SetControllen(used)
		}
		s.first[n] = i
		i = j
	}
	s.first[n] = len(bufs)
	s.n = n
}

// run returns how many buffers behind the first can share its message.
func run(bufs [][]byte, short bool) int {
	size, total := len(bufs[0]), len(bufs[0])
	n := 1
	for n < len(bufs) && n < maxSegments {
		l := len(bufs[n])
		if l == 0 || l > size || total+l > maxSegmented || short && n >= shortTrain && total+l > shortTrainBytes {
			break
		}
		total += l
		n++
		if l < size {
			break
		}
	}
	return n - 1
}

// flush sends what fill laid out. On an error it returns how many buffers left before the refused message, and whether
// that message was a segmented one.
func (s *sendState) flush(sock *udpSocket) (sent int, segmented bool, err error) {
	s.done, s.errno = 0, 0
	err = sock.raw.Write(s.write)
	if err == nil && s.errno != 0 {
		err = s.errno
	}
	sent = s.first[s.done]
	segmented = s.done < s.n && s.first[s.done+1]-sent > 1
	clear(s.iovs[:s.first[s.n]]) // the buffers go back to wireguard-go: keep no pointer into them
	return sent, segmented, err
}
