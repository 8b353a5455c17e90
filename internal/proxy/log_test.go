package proxy

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

// TestLogHasTheRequestAndNoPassword at level Debug.
func TestLogHasTheRequestAndNoPassword(t *testing.T) {
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, addr := run(t, Config{Name: "front", SOCKS: true, UDP: true, Users: alice, Dialer: hostDialer(target(t, echo)), Logger: logger})
	good := dialTest(t, addr)
	if err := Connect(t.Context(), good, Target{Name: "example.org", Port: 80}, &alice[1]); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, good, "12345")
	mustRead(t, good, "12345")
	good.Close()
	bad := dialTest(t, addr)
	mustWrite(t, bad, passHello+"\x01\x05alice\x07invalid")
	io.Copy(io.Discard, bad)
	await(t, "served", func() bool { return s.Stats().Active == 0 })
	text := log.String()
	for _, want := range []string{"request served", "proxy=front", "protocol=socks5", "user=alice", "target=example.org:80", "sent=5", "received=5", "no request"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	for _, secret := range []string{"secret", "invalid"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in\n%s", secret, text)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
