package relayserver

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// slowLine reads from a client at a rate, as somebody behind a slow line does, and counts what came from whom. It stops when the
// connection ends.
func slowLine(p *peer, bytesPerSecond int, count map[wgkey.Public]int, mu *sync.Mutex) {
	for {
		typ, payload, err := p.r.Next()
		if err != nil {
			return
		}
		if typ == derp.FrameRecvPacket {
			mu.Lock()
			count[wgkey.Public(payload)]++
			mu.Unlock()
		}
		time.Sleep(time.Duration(float64(derp.HeaderLen+len(payload)) / float64(bytesPerSecond) * float64(time.Second)))
	}
}

// A victim whose line is full of one sender's flood still gets what two others send it: their share of the line is more than that.
func TestFloodToOneVictimLeavesTheOthersTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		victim := join(t, s, newKey(t))
		flood, x, y := join(t, s, newKey(t)), join(t, s, newKey(t)), join(t, s, newKey(t))
		count, mu := map[wgkey.Public]int{}, &sync.Mutex{}
		var line sync.WaitGroup
		line.Go(func() { slowLine(victim, 1_000_000, count, mu) })
		const seconds, packets = 10, 100 // each second, of each of the two: 15 % of the line
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for i := 0; ; i++ { // ten times what the line takes
				select {
				case <-stop:
					return
				default:
				}
				for range 7 {
					flood.send(victim.public, numbered(i, 1400))
				}
				time.Sleep(time.Millisecond)
			}
		})
		for _, p := range []*peer{x, y} {
			wg.Go(func() {
				for i := range seconds * packets {
					p.send(victim.public, numbered(i, 1400))
					time.Sleep(time.Second / packets)
				}
			})
		}
		time.Sleep(seconds * time.Second)
		close(stop)
		wg.Wait()
		victim.conn.Close()
		line.Wait()
		mu.Lock()
		defer mu.Unlock()
		for _, p := range []*peer{x, y} {
			if got := count[p.public]; got < seconds*packets*9/10 {
				t.Errorf("%d of %d arrived beside a flood of %d", got, seconds*packets, count[flood.public])
			}
		}
		if got := count[flood.public]; got < 2000 {
			t.Errorf("of the flood only %d arrived", got)
		}
	})
}

// BenchmarkFlood measures round trips per second of a pair alone, and beside a client that floods another one as fast as it can. The
// processors are shared with all the clients, so that the flood costs more here than on a relay of its own.
func BenchmarkFlood(b *testing.B) {
	for _, flood := range []string{"none", "one victim", "many victims", "the pair itself"} {
		b.Run(flood, func(b *testing.B) {
			s := newServer(b, Config{Admit: everybody})
			addr, config := serveFor(b, s, true)
			near, far := mustDial(b, s, addr, config), mustDial(b, s, addr, config)
			stop := echo(far)
			defer stop()
			if flood != "none" {
				defer startFlood(b, s, flood, far)()
			}
			frame := derp.AppendFrame(nil, derp.FrameSendPacket, far.public[:], numbered(1, 1400))
			measureRTT(b, func() {
				near.conn.Write(frame)
				near.receive()
			})
		})
	}
}

// echo returns to each sender what it has sent, except floods.
func echo(p *peer) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			typ, payload, err := p.r.Next()
			if err != nil {
				return
			}
			if typ == derp.FrameRecvPacket && payload[derp.KeyLen] != 0xff {
				p.conn.Write(derp.AppendFrame(nil, derp.FrameSendPacket, payload[:derp.KeyLen], payload[derp.KeyLen:]))
			}
		}
	}()
	return func() { p.conn.Close(); <-done }
}

func startFlood(b *testing.B, s *Server, kind string, pair *peer) (stop func()) {
	addr, config := serveFor(b, s, true)
	var stops []func()
	var victims []wgkey.Public
	switch kind {
	case "the pair itself":
		victims = append(victims, pair.public)
	default:
		for range map[string]int{"one victim": 1, "many victims": 50}[kind] {
			v := mustDial(b, s, addr, config)
			stops = append(stops, echo(v))
			victims = append(victims, v.public)
		}
	}
	source := mustDial(b, s, addr, config)
	done := make(chan struct{})
	go func() {
		defer close(done)
		payload := make([]byte, 1400)
		payload[0] = 0xff
		var batch []byte
		for i := range 100 {
			batch = derp.AppendFrame(batch, derp.FrameSendPacket, victims[i%len(victims)][:], payload)
		}
		for {
			if _, err := source.conn.Write(batch); err != nil {
				return
			}
		}
	}()
	return func() {
		source.conn.Close()
		<-done
		for _, stop := range stops {
			stop()
		}
	}
}
