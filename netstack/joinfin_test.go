package netstack

import (
	"bytes"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/nat"
)

// finOf is data and the FIN behind it, which acknowledges more.
func finOf(c *tcpFlow, dataOptions, finOptions []byte) (data, fin *stack.PacketBuffer) {
	data = c.made(header.TCPFields{SeqNum: 1000, AckNum: 5, Flags: header.TCPFlagAck | header.TCPFlagPsh, WindowSize: 1}, dataOptions, 10)
	fin = c.made(header.TCPFields{SeqNum: 1010, AckNum: 6, Flags: header.TCPFlagAck | header.TCPFlagFin, WindowSize: 2}, finOptions, 0)
	return data, fin
}

func TestJoinedFINIsCurrent(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	c := madeTCP(t, n)
	later := bytes.Clone(timeOption)
	later[7], later[11] = 9, 9
	data, fin := finOf(c, timeOption, later)
	defer data.DecRef()
	defer fin.DecRef()
	if !join(data, fin.TransportHeader().Slice()) {
		t.Fatal("not joined")
	}
	h := header.TCP(data.TransportHeader().Slice())
	if h.AckNumber() != 6 || h.WindowSize() != 2 || h.Flags() != header.TCPFlagAck|header.TCPFlagPsh|header.TCPFlagFin {
		t.Errorf("acknowledgment %d, window %d, flags %v", h.AckNumber(), h.WindowSize(), h.Flags())
	}
	if h.SequenceNumber() != 1000 || !bytes.Equal(h[header.TCPMinimumSize:], later) {
		t.Errorf("sequence number %d, options %x, want the FIN's %x", h.SequenceNumber(), h[header.TCPMinimumSize:], later)
	}
}

// Counters never go back: a FIN is counted when it is known to be a packet of its own.
func TestFINIsCountedAsWhatItBecomes(t *testing.T) {
	for name, c := range map[string]struct {
		finOptions []byte
		packets    uint64
	}{
		"joined":    {timeOption, 1},
		"by itself": {nil, 2}, // its options have another length
	} {
		t.Run(name, func(t *testing.T) {
			n := delayingNet(t, time.Hour)
			flow := madeTCP(t, n)
			data, fin := finOf(flow, timeOption, c.finOptions)
			var latest uint64
			for _, pkt := range []*stack.PacketBuffer{data, fin} {
				goes := n.countReply(pkt, 1)
				between, _ := flow.flow.Counters(nat.Reply)
				n.out.push(item{pkt: pkt, peer: 1})
				after, bytes := flow.flow.Counters(nat.Reply)
				if !goes || between < latest || after < between {
					t.Errorf("goes %v; %d packets counted, then %d, then %d", goes, latest, between, after)
				}
				if latest = after; pkt == fin && (after != c.packets || bytes == 0) {
					t.Errorf("%d packets, %d bytes are counted, want %d packets", after, bytes, c.packets)
				}
			}
			if got := n.out.len(); got != int(c.packets) {
				t.Errorf("%d packets wait, want %d", got, c.packets)
			}
		})
	}
}
