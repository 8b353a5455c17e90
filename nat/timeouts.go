package nat

import (
	"time"

	"culvert.dev/culvert/internal/packet"
)

// Timeouts say how long a flow of each kind may be idle. The zero value of a field means its default.
type Timeouts struct {
	UDP            time.Duration // both ways: 5 min, RFC 4787 section 4.3 REQ-5
	UDPOneWay      time.Duration // no answer yet: 30 s, as netfilter
	UDPDNS         time.Duration // port 53 after the answer: 10 s
	TCPEstablished time.Duration // 2 h 4 min, RFC 5382 section 5 REQ-5
	TCPTransitory  time.Duration // half open or half closed: 4 min, RFC 5382 section 5 REQ-5, RFC 7857 section 2.1
	TCPClosing     time.Duration // both FINs or a RST seen: 30 s
	ICMP           time.Duration // 60 s, RFC 5508 section 3.2 REQ-2
	Other          time.Duration // any other protocol between peers: 5 min
}

func (t Timeouts) withDefaults() Timeouts {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.UDP, 300*time.Second)
	def(&t.UDPOneWay, 30*time.Second)
	def(&t.UDPDNS, 10*time.Second)
	def(&t.TCPEstablished, 7440*time.Second)
	def(&t.TCPTransitory, 240*time.Second)
	def(&t.TCPClosing, 30*time.Second)
	def(&t.ICMP, 60*time.Second)
	def(&t.Other, 300*time.Second)
	return t
}

// of returns the idle time after which f ends.
func (t *Timeouts) of(f *Flow) time.Duration {
	s := f.State()
	switch f.Key.Proto {
	case packet.ProtoTCP:
		switch {
		case s == StateClosing:
			return t.TCPClosing
		case s == StateNew, f.TCP() > TCPEstablished:
			return t.TCPTransitory
		default:
			return t.TCPEstablished
		}
	case packet.ProtoUDP:
		switch {
		case s == StateNew:
			return t.UDPOneWay
		case f.Key.DstPort == 53:
			return t.UDPDNS
		default:
			return t.UDP
		}
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		return t.ICMP
	default:
		return t.Other
	}
}
