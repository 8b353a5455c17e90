package tunnel

import (
	"errors"
	"fmt"

	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// Keepalive sends an empty packet to a peer now, by whichever way its packets go. Without a session it begins a handshake instead.
func (t *Tunnel) Keepalive(key wgkey.Public) error {
	p := t.dev.LookupPeer(device.NoisePublicKey(key))
	if p == nil {
		return fmt.Errorf("keepalive to %s: %w", key.Short(), errNoPeer)
	}
	p.SendKeepalive()
	return nil
}

var errNoPeer = errors.New("no such peer")
