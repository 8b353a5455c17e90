//go:build linux

package lab_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"
)

// halfConn is a connection whose directions end one by one.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// behave serves connections whose first byte says what the server does.
func behave(c net.Conn) {
	what := make([]byte, 1)
	if _, err := io.ReadFull(c, what); err != nil {
		return
	}
	switch what[0] {
	case 'E': // echo
		io.Copy(c, c)
	case 'S': // read everything, then answer
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%x", sha256.Sum256(b))
	case 'F': // close the own half, and read on
		io.WriteString(c, "first")
		c.(halfConn).CloseWrite()
		io.Copy(io.Discard, c)
	case 'C': // close both
		io.WriteString(c, "closed")
	case 'R': // reset
		if t, ok := c.(*net.TCPConn); ok {
			t.SetLinger(0)
		}
	}
}

// streamCases tries, by connections of dial to a server that behaves, all that a stream may do, except some.
func streamCases(t *testing.T, dial func() (net.Conn, error), except ...byte) {
	t.Helper()
	for _, c := range []struct {
		name string
		what byte
		f    func(c halfConn) error
	}{
		{"2 MB there and back", 'E', func(c halfConn) error {
			data := random(t, 2<<20)
			go func() { c.Write(data); c.CloseWrite() }()
			got, err := io.ReadAll(c)
			if err == nil && !bytes.Equal(got, data) {
				err = fmt.Errorf("%d bytes came back, and not those sent", len(got))
			}
			return err
		}},
		{"the client closes its half first", 'S', func(c halfConn) error {
			data := random(t, 1<<20)
			if _, err := c.Write(data); err != nil {
				return err
			}
			if err := c.CloseWrite(); err != nil {
				return err
			}
			return wantText(c, fmt.Sprintf("%x", sha256.Sum256(data)))
		}},
		{"the server closes its half first", 'F', func(c halfConn) error {
			if err := wantText(c, "first"); err != nil {
				return err
			}
			_, err := c.Write(random(t, 1<<20)) // a reset would show here, as it is more than buffers hold
			return err
		}},
		{"the server closes", 'C', func(c halfConn) error { return wantText(c, "closed") }},
		{"the server resets", 'R', func(c halfConn) error {
			_, err := c.Read(make([]byte, 1))
			if _, unix := c.(*net.UnixConn); unix && err != nil || errors.Is(err, syscall.ECONNRESET) {
				return nil
			}
			return fmt.Errorf("got %v, want a reset", err)
		}},
	} {
		if slices.Contains(except, c.what) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := conn.Write([]byte{c.what}); err != nil {
				t.Fatal(err)
			}
			if err := c.f(conn.(halfConn)); err != nil {
				t.Error(err)
			}
		})
	}
}

// wantText reads to the end of the stream.
func wantText(c net.Conn, want string) error {
	got, err := io.ReadAll(c)
	if err == nil && string(got) != want {
		err = fmt.Errorf("got %q, want %q", got, want)
	}
	return err
}

// connectHTTP opens a connection by HTTP CONNECT through a proxy of c.
func (w *proxied) connectHTTP(proxy, target string) (net.Conn, error) {
	c, err := socksDial(w.C, proxy)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", target)
	r := bufio.NewReaderSize(oneByOne{c}, 16)
	for first := true; ; first = false {
		line, err := r.ReadString('\n')
		if err == nil && first && !bytes.Contains([]byte(line), []byte(" 200 ")) {
			err = errors.New(line)
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		if line == "\r\n" {
			return c, nil
		}
	}
}

// oneByOne reads no byte ahead.
type oneByOne struct{ io.Reader }

func (r oneByOne) Read(b []byte) (int, error) { return r.Reader.Read(b[:min(1, len(b))]) }
