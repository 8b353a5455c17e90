package netcheck

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"culvert.dev/culvert/traversal/relay"
)

// relayPings is how often each relay is pinged; the fastest counts.
const relayPings = 3

// relays connects to all relays at once.
func (r *run) relays(ctx context.Context) []Relay {
	list := make([]Relay, len(r.cfg.Relays))
	var work sync.WaitGroup
	for i, s := range r.cfg.Relays {
		work.Go(func() {
			r.cfg.Progress("connecting to " + s.URL)
			list[i] = r.relay(ctx, s)
		})
	}
	work.Wait()
	return list
}

func (r *run) relay(ctx context.Context, s relay.Server) Relay {
	x := Relay{URL: s.URL, Throwaway: !r.ownKey}
	ctx, cancel := context.WithTimeout(ctx, relayTime)
	defer cancel()
	d := r.cfg.Dialer
	d.Key = r.cfg.Key
	begin := time.Now()
	c, err := d.Dial(ctx, s)
	if err != nil {
		x.Refused = refusesKey(err)
		x.Err = strings.TrimPrefix(err.Error(), "relay "+s.URL+": ")
		return x
	}
	x.Connected, x.Connect = true, millis(time.Since(begin))
	info := c.Info()
	x.Transport, x.TLS, x.Proxy = info.Transport.String(), info.TLS, info.Proxy
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			if _, err := c.Recv(); err != nil {
				return
			}
		}
	})
	best := time.Duration(0)
	for range relayPings {
		rtt, err := c.Ping(ctx)
		if err != nil {
			if best == 0 && !errors.Is(err, context.Canceled) {
				x.Connected, x.Err = false, "connected, but no answer to a ping: "+err.Error()
			}
			break
		}
		if best == 0 || rtt < best {
			best = rtt
		}
	}
	x.RTT = millis(best)
	c.Close()
	reading.Wait()
	return x
}

// refusesKey reports whether a relay was reached and then closed the connection once it knew the key. DERP has no message for that.
func refusesKey(err error) bool { return strings.Contains(err.Error(), "it may not admit it") }
