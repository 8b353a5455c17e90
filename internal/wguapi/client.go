package wguapi

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"
)

// callTime bounds one call, unless its context ends sooner.
const callTime = 5 * time.Second

// ErrRefused is wrapped by the error of a call that the device has refused.
var ErrRefused = errors.New("the device refuses")

// errnoError is the number that ends an answer.
func errnoError(n int64) error { return fmt.Errorf("%w: %w", ErrRefused, syscall.Errno(max(n, -n))) }

// Client talks to one device. The zero value is not usable.
type Client struct{ path string }

// NewClient returns a client of the socket at path. It does not connect yet.
func NewClient(path string) *Client { return &Client{path} }

// Path is the socket.
func (c *Client) Path() string { return c.path }

// Get reads the device. Peers are in the order that the device gives.
func (c *Client) Get(ctx context.Context) (Device, error) {
	var d Device
	err := c.call(ctx, "get=1\n\n", func(r io.Reader) (err error) {
		d, err = parse(r)
		return err
	})
	return d, err
}

// Set changes peers, in order. If one cannot be changed the error wraps ErrRefused, and those before it have been.
func (c *Client) Set(ctx context.Context, changes ...PeerChange) error {
	return c.call(ctx, setText(changes), parseSet)
}

// setText is the request for changes.
func setText(changes []PeerChange) string {
	var b strings.Builder
	b.WriteString("set=1\n")
	for _, p := range changes {
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.PublicKey[:]))
		if p.UpdateOnly {
			b.WriteString("update_only=true\n")
		}
		if p.Remove {
			b.WriteString("remove=true\n")
			continue
		}
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		if p.SetKeepalive {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", p.Keepalive/time.Second)
		}
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
		}
	}
	b.WriteString("\n")
	return b.String()
}

// parseSet reads the answer to a set.
func parseSet(r io.Reader) error {
	lines := bufio.NewScanner(io.LimitReader(r, maxLine))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "errno="); ok {
			return parseErrno(value)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errUnfinished
}

// call makes a connection, sends a request and has the answer read.
func (c *Client) call(ctx context.Context, request string, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.path)
	if err != nil {
		return c.explain(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err = io.WriteString(conn, request); err == nil {
		err = read(conn)
	}
	if ctx.Err() != nil && err != nil {
		err = ctx.Err()
	}
	if err != nil {
		return c.explain(err)
	}
	return nil
}

// explain says what an error means to the user.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, ErrRefused):
		return fmt.Errorf("WireGuard socket %s: %w", c.path, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("WireGuard socket %s: %w: is wireguard-go, or another WireGuard with such a socket, running for it?", c.path, fs.ErrNotExist)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("WireGuard socket %s: %w: run culvert as the account that runs WireGuard, or let this one at the socket", c.path, fs.ErrPermission)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("WireGuard socket %s: nobody answers: it is left from a WireGuard that has ended: %w", c.path, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("WireGuard socket %s: no answer in %v: %w", c.path, callTime, err)
	}
	return fmt.Errorf("WireGuard socket %s: %w", c.path, err)
}
