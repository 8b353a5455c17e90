package tunnel

import (
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// sameSenders is a bind that receives without end: batches of transport messages from a few senders, a run of each.
type sameSenders struct {
	conn.Bind
	from []conn.Endpoint
	run  int
}

func (b *sameSenders) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for i := range bufs {
			bufs[i][0], bufs[i][4] = typeTransport, 7
			sizes[i], eps[i] = 1452, b.from[i/b.run%len(b.from)]
		}
		return len(bufs), nil
	}}, 1, nil
}

func (b *sameSenders) ParseEndpoint(s string) (conn.Endpoint, error) {
	return newBind(discard).ParseEndpoint(s)
}

func (b *sameSenders) Send([][]byte, conn.Endpoint) error { return nil }

// BenchmarkWire tells what a packet costs between the socket and wireguard-go, in runs of one sender and with senders that
// take turns. With routes there are a thousand peers with accepted ways.
func BenchmarkWire(b *testing.B) {
	key := wgkey.Public{1}
	for _, c := range []struct {
		name        string
		run         int
		routes, own bool
	}{
		{"no routes, runs", 64, false, false}, {"no routes, in turn", 1, false, false},
		{"routes of others, runs", 64, true, false}, {"routes of others, in turn", 1, true, false},
		{"ways, runs", 64, true, true}, {"ways, in turn", 1, true, true},
	} {
		bind := &sameSenders{run: c.run}
		for _, s := range []string{"192.0.2.1:1", "192.0.2.2:1"} {
			e, err := bind.ParseEndpoint(s)
			if err != nil {
				b.Fatal(err)
			}
			bind.from = append(bind.from, e)
		}
		w := &wire{Bind: bind, log: discard, shakes: newHandshakes(key), link: newRelayLink(newMemRelay(0).client(key))}
		fns, _, err := w.Open(1)
		if err != nil {
			b.Fatal(err)
		}
		if c.routes {
			routesOfMany(b, w, c.own)
		}
		recv, bufs, sizes, eps := fns[0], newBufs(128, 1500), make([]int, 128), make([]conn.Endpoint, 128)
		b.Run("receive/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; n < b.N; n += len(bufs) {
				if _, err := recv(bufs, sizes, eps); err != nil {
					b.Fatal(err)
				}
			}
		})
		if c.run == 1 {
			continue
		}
		to := bind.from[0]
		if c.own {
			to = w.link.of(wgkey.Public{2, 1})
		}
		b.Run("send/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Send(bufs, to); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// routesOfMany gives a thousand peers routes; with own, the first two those to 192.0.2.1 and 192.0.2.2.
func routesOfMany(b *testing.B, w *wire, own bool) {
	for i := range 1000 {
		peer := wgkey.Public{2, byte(i + 1), byte((i + 1) >> 8)}
		w.link.add(peer, nil)
		w.link.of(peer).sessions.add(7)
		way := Way{0, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 1)}
		if own && i < 2 {
			way.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 1)
		}
		if err := w.link.setRoute(peer, Route{Via: ViaWay, Way: way}, new(device.Peer), w.endpointOf); err != nil {
			b.Fatal(err)
		}
	}
}
