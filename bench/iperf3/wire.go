package iperf3

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"
)

// Limits of JSON messages: what the far end may make this one hold.
const (
	maxParamsSize  = 64 << 10
	maxResultsSize = 1 << 20 // 256 streams need 70 KB
	maxOutputSize  = 16 << 20
)

// cookieSize counts the terminating zero.
const cookieSize = 37

type cookie [cookieSize]byte

// ProbeCookie is a cookie of no test. A Server tells a connection that begins with it that it is busy, at once and at any time; stock
// iperf3 does so while it is. It may be sent to find out how long a connection takes.
const ProbeCookie = "culvert-bench-probe-of-a-busy-server\x00"

// newCookie returns a cookie of the letters that iperf3 uses, so that it may be printed.
func newCookie() (c cookie) {
	const letters = "abcdefghijklmnopqrstuvwxyz234567"
	rand.Read(c[:cookieSize-1])
	for i := range c[:cookieSize-1] {
		c[i] = letters[int(c[i])%len(letters)]
	}
	return c
}

// String implements fmt.Stringer, and is safe to print whatever the bytes are.
func (c cookie) String() string {
	text, _, _ := bytes.Cut(c[:], []byte{0})
	for i, b := range text {
		if b <= ' ' || b > '~' {
			text[i] = '?'
		}
	}
	return string(text)
}

// control is the control connection. At most one goroutine reads from it and one writes to it at a time.
type control struct {
	net.Conn
	timeout time.Duration // of each exchange
}

func (c *control) writeState(s state) error {
	return c.write([]byte{byte(s)})
}

func (c *control) write(b []byte) error {
	c.SetWriteDeadline(time.Now().Add(c.timeout))
	_, err := c.Write(b)
	return err
}

func (c *control) readCookie(ck *cookie) error {
	c.SetReadDeadline(time.Now().Add(c.timeout))
	_, err := io.ReadFull(c, ck[:])
	return err
}

// readState waits for as long as it takes if patient.
func (c *control) readState(patient bool) (state, error) {
	var b [1]byte
	deadline := time.Time{}
	if !patient {
		deadline = time.Now().Add(c.timeout)
	}
	c.SetReadDeadline(deadline)
	_, err := io.ReadFull(c, b[:])
	return state(b[0]), err
}

// expect reads a state that must be the given one.
func (c *control) expect(want state) error {
	got, err := c.readState(false)
	if err != nil {
		return fmt.Errorf("wait for %v: %w", want, err)
	}
	return c.check(got, want)
}

// check turns a state that is not the wanted one into an error.
func (c *control) check(got, want state) error {
	switch got {
	case want:
		return nil
	case accessDenied:
		return ErrBusy
	case serverTerminate:
		return ErrServerTerminated
	case clientTerminate:
		return ErrClientTerminated
	case serverError:
		return c.readServerError()
	}
	return fmt.Errorf("wait for %v: got %v", want, got)
}

// readServerError reads what follows SERVER_ERROR.
func (c *control) readServerError() error {
	var b [8]byte
	c.SetReadDeadline(time.Now().Add(c.timeout))
	if n, err := io.ReadFull(c, b[:]); n < 4 {
		return fmt.Errorf("read the server's error: %w", err)
	}
	return newServerError(binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint32(b[4:]))
}

// refuse tells a client why its test is not done.
func (c *control) refuse(code int, errno uint32) error {
	state := serverError
	b := []byte{byte(state)}
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return c.write(binary.BigEndian.AppendUint32(b, errno))
}

// writeJSON writes a message with its length ahead of it.
func (c *control) writeJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
}

// readJSON reads a message of at most limit bytes. Memory is taken as they come in, not as they are announced.
func (c *control) readJSON(v any, limit int) error {
	c.SetReadDeadline(time.Now().Add(c.timeout))
	var length [4]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(length[:]))
	if n > int64(limit) {
		return fmt.Errorf("a message of %d bytes: want at most %d", n, limit)
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, c, n); err != nil {
		return err
	}
	return json.Unmarshal(b.Bytes(), v)
}
