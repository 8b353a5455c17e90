package relayserver

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"culvert.dev/culvert/traversal/relay/derp"
)

// initiation looks like the first message of a WireGuard handshake.
func initiation() []byte {
	b := make([]byte, 148)
	b[0] = 1
	return b
}

// disco looks like a message of peers that look for a path.
func disco() []byte { return append([]byte("TS💬"), make([]byte, 60)...) }

// numbered returns data that carries a number.
func numbered(n, size int) []byte {
	b := make([]byte, size)
	b[0] = 4 // WireGuard's transport data
	binary.BigEndian.PutUint32(b[4:], uint32(n))
	return b
}

func TestPacketsReachTheKeyInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody, QueueBytes: 64 << 20})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		go func() {
			for i := range 500 {
				a.send(b.public, numbered(i, 8+i*100%30_000))
			}
		}()
		for i := range 500 {
			from, data := b.receive()
			if want := numbered(i, 8+i*100%30_000); from != a.public || !bytes.Equal(data, want) {
				t.Fatalf("packet %d: %d bytes from %v, want %d from %v", i, len(data), from.Short(), len(want), a.public.Short())
			}
		}
	})
}

func TestPacketsOfUnusualLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		for _, n := range []int{0, 1, derp.MaxPacket} {
			a.send(b.public, bytes.Repeat([]byte{7}, n))
			if from, data := b.receive(); from != a.public || len(data) != n {
				t.Errorf("%d bytes became %d", n, len(data))
			}
		}
		a.send(a.public, []byte("to myself"))
		if from, data := a.receive(); from != a.public || string(data) != "to myself" {
			t.Errorf("got %q from %v", data, from.Short())
		}
	})
}

func TestPingIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := join(t, newServer(t, Config{Admit: everybody}), newKey(t))
		a.frame(derp.FramePing, bytes.Repeat([]byte("abcdefgh"), 125))
		if typ, p := a.next(); typ != derp.FramePong || string(p) != "abcdefgh" {
			t.Errorf("got %v %q, want the first 8 bytes in a pong", typ, p)
		}
	})
}

func TestFramesThatAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		other := newKey(t).Public()
		a.frame(0x7f, make([]byte, 60_000))
		a.frame(0, nil)
		a.frame(derp.FrameKeepAlive)
		a.frame(derp.FramePong, []byte("12345678"))
		a.frame(derp.FrameWatchConns)
		a.frame(derp.FrameClosePeer, b.public[:])
		a.frame(derp.FrameForwardPacket, other[:], b.public[:], []byte("forged"))
		a.frame(derp.FrameServerInfo, []byte("?"))
		a.send(b.public, []byte("still here"))
		if from, data := b.receive(); from != a.public || string(data) != "still here" {
			t.Errorf("got %q from %v", data, from.Short())
		}
		b.sync()
	})
}

func TestNonsenseAfterTheHandshakeEndsTheConnection(t *testing.T) {
	long := make([]byte, derp.MaxPacket+1)
	for name, frame := range map[string]func(p *peer){
		"packet without destination": func(p *peer) { p.frame(derp.FrameSendPacket, make([]byte, 31)) },
		"packet too long":            func(p *peer) { p.conn.Write(derp.AppendFrame(nil, derp.FrameSendPacket, p.public[:], long)) },
		"4 GiB":                      func(p *peer) { p.conn.Write([]byte{4, 0xff, 0xff, 0xff, 0xff}) },
		"ping too short":             func(p *peer) { p.frame(derp.FramePing, make([]byte, 7)) },
		"ping too long":              func(p *peer) { p.frame(derp.FramePing, make([]byte, 1001)) },
		"preference without value":   func(p *peer) { p.frame(derp.FrameNotePreferred) },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t, Config{Admit: everybody})
			p := join(t, s, newKey(t))
			frame(p)
			p.expectClosed()
			synctest.Wait()
			if st := s.Stats(); st.Clients != 0 || st.Ended["protocol"] != 1 {
				t.Errorf("%s: %d clients, ended %v", name, st.Clients, st.Ended)
			}
		})
	}
}

func TestNotHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, absent := join(t, s, newKey(t)), newKey(t).Public()
		a.send(absent, initiation())
		a.expectGone(absent, derp.GoneNotHere)
		a.send(absent, disco())
		a.expectGone(absent, derp.GoneNotHere)
		a.send(absent, numbered(1, 1400)) // data is answered by silence
		a.sync()
		if d := s.Stats().Dropped["unknown"]; d != 3 {
			t.Errorf("%d unknown, want 3", d)
		}
	})
}

func TestPreferenceAndStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a := joinAs(t, s, newKey(t), derp.ClientInfo{Version: 2, AppName: "culvert\n\x1b[31m é" + strings.Repeat("x", 50)})
		b := join(t, s, newKey(t))
		a.frame(derp.FrameNotePreferred, []byte{1})
		for range 3 {
			a.send(b.public, make([]byte, 100))
			b.receive()
		}
		a.sync()
		synctest.Wait()
		list := s.Clients()
		if len(list) != 2 {
			t.Fatalf("%d clients", len(list))
		}
		i := slices.IndexFunc(list, func(c ClientStats) bool { return c.Key == a.public })
		ca, cb := list[i], list[1-i]
		if !ca.Preferred || cb.Preferred || !ca.Active || ca.Address != netip.MustParseAddr("192.0.2.1") || ca.Transport != TransportDERP ||
			!strings.HasPrefix(ca.AppName, "culvert[31m xxx") || len(ca.AppName) != 32 {
			t.Errorf("%+v", ca)
		}
		if ca.PacketsIn != 3 || cb.PacketsOut != 3 || cb.PacketsIn != 0 || ca.BytesIn < 3*137 || cb.BytesOut < 3*137 {
			t.Errorf("a %+v\nb %+v", ca, cb)
		}
		st := s.Stats()
		if st.Clients != 2 || st.Accepted != 2 || st.PacketsIn != 3 || st.QueuedBytes != 0 {
			t.Errorf("%+v", st)
		}
		a.frame(derp.FrameNotePreferred, []byte{0})
		a.sync()
		a.conn.Close()
		b.expectGone(a.public, derp.GoneDisconnected)
		if st := s.Stats(); st.PacketsIn != 3 || st.BytesIn < 3*137 {
			t.Errorf("after a has left: %+v", st)
		}
	})
}
