package iperf3

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Defaults, and the limits that iperf3 has too.
const (
	DefaultPort = 5201
	DefaultTime = 10 * time.Second

	Unlimited = -1 // as a Rate

	defaultUDPRate   = 1 << 20 // bit/s
	defaultTCPLength = 128 << 10
	hostUDPLength    = 1460 // where the MSS of the host's stack is not known
	otherUDPLength   = 1200 // fits the smallest MTU of IPv6
	defaultInterval  = time.Second
	defaultPacing    = time.Millisecond

	maxTime      = 24 * time.Hour
	maxOmit      = 600 * time.Second
	minInterval  = 100 * time.Millisecond
	maxInterval  = time.Minute
	maxStreams   = 128
	maxLength    = 1 << 20
	minUDPLength = 16
	maxUDPLength = 65535 - 8 - 20
	maxWindow    = 512 << 20
	maxMSS       = 9 << 10
	maxBurst     = 1000
	maxBlocks    = 1 << 34 // of maxLength, they have as many
	maxBytes     = 1 << 54 // those of all streams together can be counted
)

// Params say what a test does. The zero value but for Target is a TCP upload of one stream for 10 s. The letter is iperf3's option.
type Params struct {
	Target   string // "host:port" or "host", which means port 5201
	Protocol string // "tcp" (default) or "udp": -u
	Reverse  bool   // -R: the server sends
	Bidir    bool   // --bidir: both send, each on Streams connections
	Streams  int    // -P: default 1, at most 128

	// The test ends with the first of these that is given. Bytes and Blocks are those of all streams together.
	Time   time.Duration // -t: default 10 s without Bytes and Blocks; in whole seconds to the server
	Bytes  int64         // -n
	Blocks int64         // -k

	// Length is the size of a block, which is one write or one datagram: -l. The default is 128 KiB for TCP. For UDP it is the MSS of the
	// control connection where the host knows it, and 1200 where not.
	Length int

	// Rate is what each stream sends at most, in bit/s: -b. 0 means no limit for TCP and 1 Mbit/s for UDP; Unlimited means no limit.
	Rate  int64
	Burst int // blocks sent in one go when there is a Rate: -b rate/burst; default as few as the clock allows

	Omit     time.Duration // -O: the results leave out what happens before; whole seconds
	Interval time.Duration // -i: default 1 s; negative for none

	// For sockets of the host only; another network ignores them.
	Window     int    // -w: bytes of the socket's buffers
	Congestion string // -C: the algorithm's name
	MSS        int    // -M
	NoDelay    bool   // -N
	TOS        int    // -S

	UDPCounters64    bool   // --udp-counters-64bit
	RepeatingPayload bool   // --repeating-payload
	ServerOutput     bool   // --get-server-output
	Title            string // -T
	ExtraData        string // --extra-data
}

// complete returns the parameters with the defaults in place of zero values, except for Length, which may need a connection.
func (p Params) complete() (Params, error) {
	p.Protocol = cmp.Or(p.Protocol, "tcp")
	p.Streams = cmp.Or(p.Streams, 1)
	p.Interval = cmp.Or(p.Interval, defaultInterval)
	if p.Time == 0 && p.Bytes == 0 && p.Blocks == 0 {
		p.Time = DefaultTime
	}
	if p.Length == 0 && p.Protocol == "tcp" {
		p.Length = defaultTCPLength
	}
	if p.Rate == 0 && p.Protocol == "udp" {
		p.Rate = defaultUDPRate
	}
	if _, _, err := net.SplitHostPort(p.Target); err != nil {
		p.Target = net.JoinHostPort(strings.Trim(p.Target, "[]"), fmt.Sprint(DefaultPort))
	}
	if host, _, _ := net.SplitHostPort(p.Target); host == "" {
		return p, errors.New("no target")
	}
	return p, p.check()
}

// check is for complete parameters.
func (p *Params) check() error {
	smallest, largest := 1, maxLength
	if p.udp() {
		smallest, largest = minUDPLength, maxUDPLength
	}
	switch {
	case p.Protocol != "tcp" && p.Protocol != "udp":
		return fmt.Errorf("protocol %q: want tcp or udp", p.Protocol)
	case p.Reverse && p.Bidir:
		return errors.New("reverse and bidirectional exclude each other")
	case p.Streams < 1 || p.Streams > maxStreams:
		return &refusal{codeStreams, fmt.Sprintf("%d streams: want 1 to %d", p.Streams, maxStreams)}
	case p.Time < 0 || p.Time > maxTime:
		return &refusal{codeDuration, fmt.Sprintf("%v of time: want at most %v", p.Time, maxTime)}
	case p.Omit < 0 || p.Omit > maxOmit:
		return &refusal{codeOmit, fmt.Sprintf("omit %v: want at most %v", p.Omit, maxOmit)}
	case p.Omit%time.Second != 0:
		return fmt.Errorf("omit %v: want whole seconds, as the server must omit the same", p.Omit)
	case p.Bytes < 0 || p.Bytes > maxBytes:
		return &refusal{codeEndConditions, fmt.Sprintf("%d bytes: want at most %d", p.Bytes, int64(maxBytes))}
	case p.Blocks < 0 || p.Blocks > maxBlocks:
		return &refusal{codeEndConditions, fmt.Sprintf("%d blocks: want at most %d", p.Blocks, int64(maxBlocks))}
	case p.Length != 0 && (p.Length < smallest || p.Length > largest):
		code := codeLength
		if p.udp() {
			code = codeUDPLength
		}
		return &refusal{code, fmt.Sprintf("blocks of %d bytes: want %d to %d", p.Length, smallest, largest)}
	case p.Interval >= 0 && (p.Interval < minInterval || p.Interval > maxInterval):
		return &refusal{codeInterval, fmt.Sprintf("interval of %v: want %v to %v", p.Interval, minInterval, maxInterval)}
	case p.Window < 0 || p.Window > maxWindow:
		return &refusal{codeWindow, fmt.Sprintf("window of %d bytes: want at most %d", p.Window, maxWindow)}
	case p.MSS < 0 || p.MSS > maxMSS:
		return &refusal{codeMSS, fmt.Sprintf("MSS of %d bytes: want at most %d", p.MSS, maxMSS)}
	case p.TOS < 0 || p.TOS > 255:
		return &refusal{codeTOS, fmt.Sprintf("TOS %d: want 0 to 255", p.TOS)}
	case p.Burst < 0 || p.Burst > maxBurst:
		return &refusal{codeBurst, fmt.Sprintf("bursts of %d blocks: want at most %d", p.Burst, maxBurst)}
	}
	return nil
}

func (p *Params) udp() bool { return p.Protocol == "udp" }

// clientSends and serverSends say which way streams go.
func (p *Params) clientSends() bool { return !p.Reverse || p.Bidir }
func (p *Params) serverSends() bool { return p.Reverse || p.Bidir }

// connections is how many there are for streams.
func (p *Params) connections() int {
	if p.Bidir {
		return 2 * p.Streams
	}
	return p.Streams
}
