package derp

import (
	"encoding/binary"
	"fmt"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// PutHeader writes the header of a frame into b[:HeaderLen].
func PutHeader(b []byte, t Type, payloadLen int) {
	_ = b[HeaderLen-1]
	b[0] = byte(t)
	binary.BigEndian.PutUint32(b[1:], uint32(payloadLen))
}

// AppendFrame appends a frame whose payload is the parts one after the other.
func AppendFrame(dst []byte, t Type, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	var h [HeaderLen]byte
	PutHeader(h[:], t, n)
	dst = append(dst, h[:]...)
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return dst
}

// AppendPeerGone appends a whole PeerGone frame.
func AppendPeerGone(dst []byte, peer wgkey.Public, why GoneReason) []byte {
	return AppendFrame(dst, FramePeerGone, peer[:], []byte{byte(why)})
}

// ParsePeerGone reads the payload of a PeerGone frame.
func ParsePeerGone(payload []byte) (peer wgkey.Public, why GoneReason, err error) {
	if len(payload) < KeyLen {
		return peer, 0, short(FramePeerGone, payload, KeyLen)
	}
	peer = wgkey.Public(payload[:KeyLen])
	if len(payload) > KeyLen {
		why = GoneReason(payload[KeyLen])
	}
	return peer, why, nil
}

// AppendRestarting appends a whole Restarting frame: the client may connect again after reconnectIn, and should try for tryFor.
// Both are whole milliseconds on the wire; what does not fit is cut.
func AppendRestarting(dst []byte, reconnectIn, tryFor time.Duration) []byte {
	var b [8]byte
	binary.BigEndian.PutUint32(b[:], millis(reconnectIn))
	binary.BigEndian.PutUint32(b[4:], millis(tryFor))
	return AppendFrame(dst, FrameRestarting, b[:])
}

func millis(d time.Duration) uint32 {
	return uint32(min(max(d.Milliseconds(), 0), 1<<32-1))
}

// ParseRestarting reads the payload of a Restarting frame.
func ParseRestarting(payload []byte) (reconnectIn, tryFor time.Duration, err error) {
	if len(payload) < 8 {
		return 0, 0, short(FrameRestarting, payload, 8)
	}
	ms := func(b []byte) time.Duration { return time.Duration(binary.BigEndian.Uint32(b)) * time.Millisecond }
	return ms(payload), ms(payload[4:]), nil
}

// ParsePing returns what the Pong to a Ping with this payload carries. A Ping may be longer than what is echoed of it.
func ParsePing(payload []byte) (echo [PingLen]byte, err error) {
	switch {
	case len(payload) < PingLen:
		return echo, short(FramePing, payload, PingLen)
	case len(payload) > maxPingLen:
		return echo, fmt.Errorf("frame %v: payload of %d bytes, want at most %d", FramePing, len(payload), maxPingLen)
	}
	return [PingLen]byte(payload), nil
}

// short is the error for a payload that misses something.
func short(t Type, payload []byte, want int) error {
	return fmt.Errorf("frame %v: payload of %d bytes, want at least %d", t, len(payload), want)
}
