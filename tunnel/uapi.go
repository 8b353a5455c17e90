package tunnel

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// wireguard-go is configured and read by the cross-platform text protocol of WireGuard (www.wireguard.com/xplatform): lines
// of key=value, keys in hexadecimal. Nothing outside this file knows of it.

// peerUpdate is a change to one peer of the device.
type peerUpdate struct {
	key       wgkey.Public
	remove    bool
	create    bool // else the update is void unless the device has the peer
	preshared *wgkey.Preshared
	endpoint  netip.AddrPort // invalid: unchanged
	relayed   bool           // the endpoint is the relay
	keepalive *int
	add, drop []netip.Prefix
}

// configure applies a configuration text. The text may hold secrets: it must not appear in an error.
func (t *Tunnel) configure(text string) error {
	if err := t.dev.IpcSet(text); err != nil {
		return fmt.Errorf("configure wireguard: %w", err)
	}
	return nil
}

// deviceText configures the interface itself. The port is the wire's business.
func deviceText(key wgkey.Private) string { return fmt.Sprintf("private_key=%s\n", key.RevealHex()) }

// updateText configures peers, in the order given.
func updateText(updates []peerUpdate) string {
	var b strings.Builder
	for _, u := range updates {
		fmt.Fprintf(&b, "public_key=%s\n", u.key.Hex())
		if u.remove {
			b.WriteString("remove=true\n")
			continue
		}
		if !u.create {
			b.WriteString("update_only=true\n")
		}
		if u.preshared != nil {
			fmt.Fprintf(&b, "preshared_key=%s\n", u.preshared.RevealHex())
		}
		if u.endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", u.endpoint)
		}
		if u.relayed {
			fmt.Fprintf(&b, "endpoint=%s\n", relayText(u.key))
		}
		if u.keepalive != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", *u.keepalive)
		}
		for _, p := range u.add {
			fmt.Fprintf(&b, "allowed_ip=%s\n", p)
		}
		for _, p := range u.drop {
			fmt.Fprintf(&b, "allowed_ip=-%s\n", p)
		}
	}
	return b.String()
}

// snapshot reads the state of all peers from the device.
func (t *Tunnel) snapshot() (map[wgkey.Public]PeerStats, error) {
	text, err := t.dev.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("read wireguard state: %w", err)
	}
	return parseState(text)
}

// parseState reads the answer to a get request. Keys that it does not know are skipped; those of the interface, among them
// the private key, come before the first peer and are skipped too. Errors name the line and never its value.
func parseState(text string) (map[wgkey.Public]PeerStats, error) {
	peers := map[wgkey.Public]PeerStats{}
	var p PeerStats
	var sec, nsec int64
	inPeer := false
	finish := func() {
		if inPeer {
			if sec != 0 || nsec != 0 {
				p.LastHandshake = time.Unix(sec, nsec)
			}
			peers[p.PublicKey] = p
		}
	}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("wireguard state line %d: no key", number)
		}
		if key == "public_key" {
			finish()
			p, sec, nsec, inPeer = PeerStats{}, 0, 0, true
			if n, err := hex.Decode(p.PublicKey[:], []byte(value[:min(len(value), 2*wgkey.Size)])); err != nil || n != wgkey.Size || len(value) != 2*wgkey.Size {
				return nil, fmt.Errorf("wireguard state line %d: public_key is not a key", number)
			}
			continue
		}
		if !inPeer {
			continue
		}
		var err error
		switch key {
		case "endpoint":
			if _, p.Relayed = parseRelayText(value); !p.Relayed {
				p.Endpoint, err = netip.ParseAddrPort(value)
			}
		case "last_handshake_time_sec":
			sec, err = parseTime(value, 40)
		case "last_handshake_time_nsec":
			nsec, err = parseTime(value, 30)
		case "rx_bytes":
			p.RxBytes, err = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			p.TxBytes, err = strconv.ParseUint(value, 10, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("wireguard state line %d: bad value of %s", number, key)
		}
	}
	finish()
	return peers, nil
}

// parseTime reads a part of a time. The bits keep the whole within what time.Time counts in.
func parseTime(s string, bits int) (int64, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	return int64(n), err
}
