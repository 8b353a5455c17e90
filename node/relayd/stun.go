package relayd

import (
	"fmt"
	"log/slog"
	"net/netip"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/traversal/stun"
)

// listenSTUN opens the STUN server's ports; nil if it is off.
func listenSTUN(conf config.RelaySTUN, log *slog.Logger) (*stun.Server, error) {
	if len(conf.Listen) == 0 {
		return nil, nil
	}
	c := stun.ServerConfig{Logger: log}
	for _, a := range conf.Listen {
		c.Addrs = append(c.Addrs, netip.AddrPortFrom(a.Addr, a.Port))
	}
	s, err := stun.Listen(c)
	if err != nil {
		return nil, explainListen(fmt.Sprintf("STUN: listen on %v", conf.Listen), "Listen in [STUN]", err)
	}
	return s, nil
}
