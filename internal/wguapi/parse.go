package wguapi

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

const (
	maxAnswer = 32 << 20 // bytes; some 100,000 peers
	maxLine   = 4 << 10
)

// errUnfinished is an answer that ends before its errno, or is too long.
var errUnfinished = errors.New("the answer is cut short")

// parse reads the answer to a get, up to and with its errno. Keys that are unknown are skipped: implementations add their own.
func parse(r io.Reader) (Device, error) {
	var p parser
	lines := bufio.NewScanner(io.LimitReader(r, maxAnswer))
	lines.Buffer(make([]byte, 0, maxLine), maxLine)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			return Device{}, errors.New("the answer has a line that is not KEY=VALUE")
		}
		if key == "errno" {
			return p.finish(value)
		}
		if err := p.line(key, value); err != nil {
			return Device{}, fmt.Errorf("%s: %w", printable(key), err) // not the value, which may be a secret
		}
	}
	if err := lines.Err(); err != nil {
		return Device{}, err
	}
	return Device{}, errUnfinished
}

// parser has what has been read so far.
type parser struct {
	device    Device
	peer      *Peer // the last of device; nil before the first
	sec, nano int64 // of its last handshake
	seen      map[wgkey.Public]bool
}

// line takes in one line of an answer.
func (p *parser) line(key, value string) (err error) {
	switch key {
	case "private_key":
		p.device.PrivateKey, err = parsePrivate(value)
		return err
	case "listen_port":
		p.device.ListenPort, err = parsePort(value)
		return err
	case "fwmark":
		n, err := strconv.ParseUint(value, 0, 32) // wireguard-go writes decimal digits, others 0x
		p.device.FirewallMark = uint32(n)
		return shorten(err)
	case "public_key":
		return p.startPeer(value)
	}
	if p.peer == nil {
		return nil
	}
	switch key {
	case "endpoint":
		p.peer.Endpoint, err = parseEndpoint(value)
	case "last_handshake_time_sec":
		p.sec, err = strconv.ParseInt(value, 10, 64)
	case "last_handshake_time_nsec":
		p.nano, err = strconv.ParseInt(value, 10, 64)
	case "rx_bytes":
		p.peer.RxBytes, err = strconv.ParseUint(value, 10, 64)
	case "tx_bytes":
		p.peer.TxBytes, err = strconv.ParseUint(value, 10, 64)
	case "persistent_keepalive_interval":
		var n uint64
		n, err = strconv.ParseUint(value, 10, 16)
		p.peer.Keepalive = time.Duration(n) * time.Second
	case "allowed_ip":
		var prefix netip.Prefix
		prefix, err = netip.ParsePrefix(value)
		p.peer.AllowedIPs = append(p.peer.AllowedIPs, prefix.Masked())
	}
	return shorten(err)
}

func (p *parser) startPeer(value string) error {
	key, err := parsePublic(value)
	if err != nil {
		return err
	}
	if p.seen[key] {
		return errors.New("there are two peers with one key")
	}
	if p.seen == nil {
		p.seen = make(map[wgkey.Public]bool)
	}
	p.seen[key] = true
	if err := p.endPeer(); err != nil {
		return err
	}
	p.device.Peers = append(p.device.Peers, Peer{PublicKey: key})
	p.peer = &p.device.Peers[len(p.device.Peers)-1]
	return nil
}

// endPeer enters what takes more than one line.
func (p *parser) endPeer() error {
	if p.peer == nil {
		return nil
	}
	const latest = 1 << 40 // the year 36812
	if p.sec < 0 || p.sec > latest || p.nano < 0 || p.nano >= int64(time.Second) {
		return errors.New("the time of the last handshake is none")
	}
	if p.sec != 0 || p.nano != 0 {
		p.peer.LastHandshake = time.Unix(p.sec, p.nano)
	}
	p.sec, p.nano = 0, 0
	return nil
}

func (p *parser) finish(errno string) (Device, error) {
	if err := parseErrno(errno); err != nil {
		return Device{}, err
	}
	if err := p.endPeer(); err != nil {
		return Device{}, err
	}
	return p.device, nil
}

// parseErrno reads what ends an answer; nil for success.
func parseErrno(value string) error {
	n, err := strconv.ParseInt(value, 10, 32)
	switch {
	case err != nil:
		return fmt.Errorf("errno: %w", shorten(err))
	case n == 0:
		return nil
	}
	return errnoError(n)
}

func parseKey(value string) (k [wgkey.Size]byte, err error) {
	if len(value) != hex.EncodedLen(wgkey.Size) {
		return k, errors.New("not a key")
	}
	if _, err := hex.Decode(k[:], []byte(value)); err != nil {
		return k, errors.New("not a key")
	}
	return k, nil
}

func parsePublic(value string) (wgkey.Public, error) {
	k, err := parseKey(value)
	return wgkey.Public(k), err
}

func parsePrivate(value string) (wgkey.Private, error) {
	k, err := parseKey(value)
	if err != nil || k == [wgkey.Size]byte{} {
		return wgkey.Private{}, err
	}
	return wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(k[:]))
}

func parsePort(value string) (uint16, error) {
	n, err := strconv.ParseUint(value, 10, 16)
	return uint16(n), shorten(err)
}

func parseEndpoint(value string) (netip.AddrPort, error) {
	e, err := netip.ParseAddrPort(value)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(e.Addr().Unmap(), e.Port()), nil
}

// shorten keeps what is wrong with a number and leaves out the number.
func shorten(err error) error {
	var n *strconv.NumError
	if errors.As(err, &n) {
		return n.Err
	}
	return err
}

// printable keeps a key of the protocol fit for a log.
func printable(key string) string {
	const longest = 40
	return strconv.QuoteToASCII(key[:min(len(key), longest)])
}
