package iperf3

import (
	"encoding/binary"
	"time"
)

// The datagrams that open a stream are numbers in the byte order of the sender's host: "9876" and "6789" from most.
const (
	connectMagic       = 0x36373839
	connectReply       = 0x39383736
	connectMagicOld    = 123456789
	connectReplyOld    = 987654321
	connectMagicLength = 4
)

func connectMessage() []byte { return binary.LittleEndian.AppendUint32(nil, connectMagic) }
func connectAnswer() []byte  { return binary.LittleEndian.AppendUint32(nil, connectReply) }

// isMagic reports whether a datagram is one of two numbers, in either byte order.
func isMagic(b []byte, magic, old uint32) bool {
	if len(b) != connectMagicLength {
		return false
	}
	little, big := binary.LittleEndian.Uint32(b), binary.BigEndian.Uint32(b)
	return little == magic || big == magic || little == old || big == old
}

// isConnect reports whether a datagram opens a stream: the first one of a client, or a repeated one, see connectAgain.
func isConnect(b []byte) bool {
	if isMagic(b, connectMagic, connectMagicOld) {
		return true
	}
	h, ok := parseHeader(b, true)
	return ok && h.number == 0 && len(b) == header64
}

func isConnectAnswer(b []byte) bool { return isMagic(b, connectReply, connectReplyOld) }

// connectAgain repeats the opening of a stream whose answer does not come. iperf3 takes any datagram for the first one, but counts
// what follows as data; so this is a datagram of data, with number 0, which changes no figure but that of those out of order.
func connectAgain(now time.Duration) []byte {
	return header{sent: now}.append(nil, true)
}

// Sizes of the header.
const (
	header32 = 12
	header64 = 16
)

// header starts each datagram of a test.
type header struct {
	sent   time.Duration // by any clock of the sender's
	number uint64        // 1 for the first
}

// append appends the header, with a number of 64 bits if wide.
func (h header) append(b []byte, wide bool) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(h.sent/time.Second))
	b = binary.BigEndian.AppendUint32(b, uint32(h.sent%time.Second/time.Microsecond))
	if wide {
		return binary.BigEndian.AppendUint64(b, h.number)
	}
	return binary.BigEndian.AppendUint32(b, uint32(h.number))
}

// parseHeader is false for what cannot be a datagram of a test.
func parseHeader(b []byte, wide bool) (h header, ok bool) {
	if len(b) < header32 || wide && len(b) < header64 {
		return h, false
	}
	h.sent = time.Duration(binary.BigEndian.Uint32(b))*time.Second + time.Duration(binary.BigEndian.Uint32(b[4:]))*time.Microsecond
	if wide {
		h.number = binary.BigEndian.Uint64(b[8:])
	} else {
		h.number = uint64(binary.BigEndian.Uint32(b[8:]))
	}
	return h, h.number < 1<<62
}

// reception counts the datagrams of a stream. The zero value is ready.
type reception struct {
	highest    uint64 // the largest number seen
	lost       int64
	outOfOrder int64
	jitter     float64 // seconds

	any     bool          // a datagram has come, so that the next is valid
	transit time.Duration // of the last one, by two clocks that are not in step
}

// arrive counts a datagram. One that is late takes back a loss, as a gap was counted before; so does, wrongly, a duplicate.
func (r *reception) arrive(h header, now time.Duration) {
	if h.number > r.highest {
		r.lost += int64(h.number - r.highest - 1)
		r.highest = h.number
	} else {
		r.outOfOrder++
		r.lost = max(r.lost-1, 0)
	}
	// RFC 1889 section A.8. Both clocks count from where they like: only differences matter.
	transit := now - h.sent
	if r.any {
		d := (transit - r.transit).Abs().Seconds()
		r.jitter += (d - r.jitter) / 16
	}
	r.any, r.transit = true, transit
}
