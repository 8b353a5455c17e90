package relayserver

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

func TestNonsenseInTheHandshakeEndsTheConnection(t *testing.T) {
	key := newKey(t)
	for name, c := range map[string]struct {
		bytes  func(server wgkey.Public) []byte
		reason string
	}{
		"another frame": {func(wgkey.Public) []byte { return derp.AppendFrame(nil, derp.FramePing, []byte("12345678")) }, "handshake"},
		"unknown frame": {func(wgkey.Public) []byte { return derp.AppendFrame(nil, 0x66) }, "handshake"},
		"short":         {func(wgkey.Public) []byte { return derp.AppendFrame(nil, derp.FrameClientInfo, make([]byte, 40)) }, "handshake"},
		"too long": {func(wgkey.Public) []byte {
			b := make([]byte, derp.HeaderLen)
			derp.PutHeader(b, derp.FrameClientInfo, maxClientInfo+1)
			return b
		}, "handshake"},
		"box for another": {func(wgkey.Public) []byte {
			p, _ := derp.SealClientInfo(key, key.Public(), derp.ClientInfo{Version: 2})
			return derp.AppendFrame(nil, derp.FrameClientInfo, p)
		}, "handshake"},
		"key of another": {func(server wgkey.Public) []byte {
			p, _ := derp.SealClientInfo(key, server, derp.ClientInfo{Version: 2})
			p[3] ^= 1
			return derp.AppendFrame(nil, derp.FrameClientInfo, p)
		}, "handshake"},
		"not DERP": {func(wgkey.Public) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, "handshake"},
		"nothing":  {func(wgkey.Public) []byte { return nil }, "handshake"}, // the deadline passes
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t, Config{Admit: everybody})
			conn, _ := attach(t, s, "192.0.2.1")
			defer conn.Close()
			go conn.Write(c.bytes(s.public))
			r := derp.NewReader(conn, derp.MaxServerFrame)
			if typ, _, err := r.Next(); typ != derp.FrameServerKey || err != nil {
				t.Fatal(typ, err)
			}
			start := time.Now()
			if typ, _, err := r.Next(); err == nil {
				t.Errorf("%s: answered by %v", name, typ)
			}
			if d := time.Since(start); d > DefaultHandshakeTimeout || name == "nothing" && d != DefaultHandshakeTimeout {
				t.Errorf("%s: it took %v", name, d)
			}
			synctest.Wait()
			if st := s.Stats(); st.Refused[c.reason] != 1 || st.Clients != 0 || s.reserved.Load() != 0 {
				t.Errorf("%s: refused %v, %d places held", name, st.Refused, s.reserved.Load())
			}
		})
	}
}

func TestNobodyIsAdmittedWithoutAdmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		conn, _ := attach(t, s, "192.0.2.1")
		if _, err := login(t, s, conn, newKey(t), derp.ClientInfo{}); err == nil {
			t.Error("somebody was admitted")
		}
		synctest.Wait()
		if n := s.Stats().Refused["not allowed"]; n != 1 {
			t.Errorf("%d are counted as not allowed", n)
		}
	})
}

func TestAdmissionAndRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, other := newKey(t), newKey(t)
		allowed := map[wgkey.Public]bool{good.Public(): true}
		var log strings.Builder
		s := newServer(t, Config{Logger: textLogger(&log), Admit: func(key wgkey.Public, from netip.Addr) error {
			if from != netip.MustParseAddr("192.0.2.1") || !allowed[key] {
				return errors.New("not on the list")
			}
			return nil
		}})
		a := join(t, s, good)
		conn, _ := attach(t, s, "192.0.2.1")
		if _, err := login(t, s, conn, other, derp.ClientInfo{}); err == nil {
			t.Fatal("a key that is not on the list was admitted")
		}
		synctest.Wait()
		allowed[other.Public()] = true
		b := join(t, s, other)
		s.Recheck()
		a.send(b.public, []byte("x"))
		b.receive()
		delete(allowed, good.Public())
		s.Recheck()
		a.expectClosed()
		b.expectGone(a.public, derp.GoneDisconnected)
		b.sync()
		if st := s.Stats(); st.Clients != 1 || st.Ended["not allowed"] != 1 || st.Refused["not allowed"] != 1 {
			t.Errorf("%+v", st)
		}
		if text := log.String(); !strings.Contains(text, other.Public().Short()) || !strings.Contains(text, "not on the list") ||
			strings.Contains(text, other.Public().String()) {
			t.Errorf("log: %s", text)
		}
	})
}

// The list changes while somebody is between admission and being a client.
func TestRecheckDuringAHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *Server
		calls := 0
		s = newServer(t, Config{Admit: func(wgkey.Public, netip.Addr) error {
			if calls++; calls > 1 {
				return errors.New("not any more")
			}
			s.admitted.Add(1) // as Recheck does, which does not see this client yet
			return nil
		}})
		conn, _ := attach(t, s, "192.0.2.1")
		if p, err := login(t, s, conn, newKey(t), derp.ClientInfo{}); err == nil {
			p.expectClosed()
		}
		synctest.Wait()
		if st := s.Stats(); st.Accepted != 1 || st.Ended["not allowed"] != 1 || st.Clients != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestMetaCertificateIsRenewed(t *testing.T) {
	s := newServer(t, Config{})
	first, day := s.MetaCertificate(), 24*time.Hour
	s.renew(s.start.Add(14 * day))
	if !bytes.Equal(first, s.MetaCertificate()) {
		t.Error("renewed too early")
	}
	s.renew(s.start.Add(16 * day))
	second := s.MetaCertificate()
	if bytes.Equal(first, second) {
		t.Error("not renewed in the middle of its life")
	}
	s.renew(s.start.Add(-day)) // the clock was wrong and has been set
	if bytes.Equal(second, s.MetaCertificate()) {
		t.Error("not renewed although it is not valid yet")
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no key":          {},
		"negative":        {Key: newKey(t), MaxClients: -1},
		"queue too small": {Key: newKey(t), QueueBytes: 1000},
	} {
		if s, err := New(cfg); err == nil {
			s.Close()
			t.Errorf("%s: taken", name)
		}
	}
}
