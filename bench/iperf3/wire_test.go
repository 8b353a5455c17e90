package iperf3

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pipe returns a control connection and its far end.
func pipe(t *testing.T) (*control, net.Conn) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return &control{a, 5 * time.Second}, b
}

func TestCookieIsPrintableAndEndsWithZero(t *testing.T) {
	a, b := newCookie(), newCookie()
	if a == b {
		t.Error("two cookies are the same")
	}
	if a[cookieSize-1] != 0 || len(a.String()) != cookieSize-1 || strings.Trim(a.String(), "abcdefghijklmnopqrstuvwxyz234567") != "" {
		t.Errorf("cookie %q", a)
	}
	hostile := cookie{'\x1b', '[', 'm', 'x'}
	if got := hostile.String(); got != "?[mx" {
		t.Errorf("a cookie with control characters prints as %q", got)
	}
}

func TestMessageThatIsAnnouncedTooLongIsRefusedAtOnce(t *testing.T) {
	c, far := pipe(t)
	go far.Write([]byte{0xff, 0xff, 0xff, 0xff})
	var v any
	if err := c.readJSON(&v, maxParamsSize); err == nil || !strings.Contains(err.Error(), "4294967295") {
		t.Errorf("got %v", err)
	}
}

func TestMessageIsReadAsItComesIn(t *testing.T) {
	c, far := pipe(t)
	c.timeout = 50 * time.Millisecond
	go far.Write(append(binary.BigEndian.AppendUint32(nil, maxParamsSize), `{"time":1`...))
	var v any
	if err := c.readJSON(&v, maxParamsSize); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a message that does not come: got %v", err)
	}
}

func TestJSONGoesThrough(t *testing.T) {
	c, far := pipe(t)
	d := &control{far, time.Second}
	go c.writeJSON((&Params{Protocol: "udp", Streams: 3}).wire())
	var w wireParams
	if err := d.readJSON(&w, maxParamsSize); err != nil || w.Parallel != 3 || !bool(w.UDP) || bool(w.TCP) {
		t.Errorf("got %+v, %v", w, err)
	}
}

func TestStatesAreBytes(t *testing.T) {
	c, far := pipe(t)
	for s, want := range map[state]byte{testStart: 1, testEnd: 4, done: 16, accessDenied: 0xff, serverError: 0xfe} {
		go c.writeState(s)
		b := make([]byte, 1)
		if _, err := far.Read(b); err != nil || b[0] != want {
			t.Errorf("%v: got %x, %v", s, b, err)
		}
	}
}

func TestUnexpectedStates(t *testing.T) {
	for s, want := range map[state]error{accessDenied: ErrBusy, serverTerminate: ErrServerTerminated, clientTerminate: ErrClientTerminated} {
		c, far := pipe(t)
		go far.Write([]byte{byte(s)})
		if err := c.expect(testStart); !errors.Is(err, want) {
			t.Errorf("%v: got %v, want %v", s, err, want)
		}
	}
	c, far := pipe(t)
	go far.Write([]byte{77})
	if err := c.expect(testStart); err == nil || !strings.Contains(err.Error(), "wait for TEST_START: got state 77") {
		t.Errorf("got %v", err)
	}
}

func TestRefusalTellsWhy(t *testing.T) {
	c, far := pipe(t)
	client := &control{far, time.Second}
	go c.refuse(codeDuration, uint32(syscall.EACCES))
	var e *ServerError
	if err := client.expect(createStreams); !errors.As(err, &e) || e.Code != codeDuration || e.Errno != syscall.EACCES {
		t.Fatalf("got %v", err)
	}
	if got := e.Error(); got != "the server refuses: the test is too long: permission denied" {
		t.Error(got)
	}
}

func TestServerErrorMayBeCutShort(t *testing.T) {
	c, far := pipe(t)
	go func() { far.Write([]byte{0xfe, 0, 0, 0, 6}); far.Close() }()
	var e *ServerError
	if err := c.expect(createStreams); !errors.As(err, &e) || e.Code != codeStreams {
		t.Errorf("got %v", err)
	}
	c, far = pipe(t)
	go func() { far.Write([]byte{0xfe, 0}); far.Close() }()
	if err := c.expect(createStreams); err == nil || errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
}

func TestTextOfServerCannotDriveATerminal(t *testing.T) {
	r := &Result{ServerOutputText: "ok\n\x1b[2Jgone\u009b"}
	var b bytes.Buffer
	r.Summary(&b)
	if strings.ContainsAny(b.String(), "\x1b\u009b") || !strings.Contains(b.String(), "ok\n?[2Jgone?") {
		t.Errorf("%q", b.String())
	}
}
