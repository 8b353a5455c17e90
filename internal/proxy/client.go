package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Connect asks the SOCKS5 server at the other end of c for a connection to t; after nil, c is that connection. Everything
// leaves in one write, so that it takes one round trip. A refusal is an *Error with the server's reason. ctx bounds it; once
// it has ended, or after any other error, c is of no use. Nothing behind the reply is read.
func Connect(ctx context.Context, c net.Conn, t Target, u *User) error {
	if t.Port == 0 || t.Host() == "" {
		return Fail(General, "socks5 connect: no target")
	}
	_, err := request(ctx, c, commandConnect, t, u)
	if err != nil {
		return fmt.Errorf("socks5 connect %s: %w", t, err)
	}
	return nil
}

// request sends a request and returns the address of the reply.
func request(ctx context.Context, c net.Conn, command byte, t Target, u *User) (bound Target, err error) {
	stop := bindContext(ctx, c)
	bound, err = exchange(c, command, t, u)
	if ended := stop(); ended != nil {
		return Target{}, ended
	}
	return bound, err
}

// bindContext makes the end of ctx the end of what c does. stop frees c again and returns the error of ctx if it came first.
func bindContext(ctx context.Context, c net.Conn) (stop func() error) {
	done := make(chan struct{})
	release := context.AfterFunc(ctx, func() {
		c.SetDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() error {
		if !release() {
			<-done
			return ctx.Err()
		}
		return nil
	}
}

func exchange(c net.Conn, command byte, t Target, u *User) (Target, error) {
	b, err := appendOpening(make([]byte, 0, 64), u)
	if err != nil {
		return Target{}, err
	}
	b = appendTarget(append(b, 5, command, 0), t)
	if _, err := c.Write(b); err != nil {
		return Target{}, err
	}
	if err := readOpening(c, u != nil); err != nil {
		return Target{}, err
	}
	return readReply(c)
}

// appendOpening writes the greeting, which offers one method only, and the credentials behind it.
func appendOpening(b []byte, u *User) ([]byte, error) {
	if u == nil {
		return append(b, 5, 1, methodNone), nil
	}
	if len(u.Name) == 0 || len(u.Name) > 255 || len(u.Password) > 255 {
		return nil, Fail(General, "user name and password have at most 255 bytes, the name at least 1")
	}
	b = append(b, 5, 1, methodPassword, passwordVersion, byte(len(u.Name)))
	b = append(b, u.Name...)
	b = append(b, byte(len(u.Password)))
	return append(b, u.Password...), nil
}

func readOpening(c net.Conn, password bool) error {
	var b [2]byte
	if err := readFull(c, b[:]); err != nil {
		return err
	}
	want := byte(methodNone)
	if password {
		want = methodPassword
	}
	switch {
	case b[0] != 5:
		return errVersion
	case b[1] == methodRefused && !password:
		return Fail(NotAllowed, "the server wants a user name and password")
	case b[1] == methodRefused:
		return Fail(NotAllowed, "the server takes no password")
	case b[1] != want:
		return fmt.Errorf("the server chose method %d, which was not offered", b[1])
	case !password:
		return nil
	}
	if err := readFull(c, b[:]); err != nil {
		return err
	}
	if b[1] != passwordRight { // the version differs from server to server
		return Fail(NotAllowed, "the server refuses the user name or password")
	}
	return nil
}

// readReply reads a reply and not a byte more.
func readReply(c net.Conn) (Target, error) {
	var buf [4 + 1 + maxNameLen + 2]byte
	if err := readFull(c, buf[:5]); err != nil { // with the first byte of the address, which of a name is its length
		return Target{}, err
	}
	size := 0
	switch buf[3] {
	case addressIPv4:
		size = 4 + 4 + 2
	case addressIPv6:
		size = 4 + 16 + 2
	case addressName:
		size = 5 + int(buf[4]) + 2
	}
	switch {
	case buf[0] != 5:
		return Target{}, errVersion
	case buf[1] != replySucceeded:
		return Target{}, refusal(buf[1], buf[3], buf[4])
	case size == 0:
		return Target{}, fmt.Errorf("a reply with address type %d", buf[3])
	}
	if err := readFull(c, buf[5:size]); err != nil {
		return Target{}, err
	}
	return parseBound(buf[3:size])
}

// parseBound parses the address of a reply. Names that are none and empty names do no harm, as only addresses are used.
func parseBound(b []byte) (Target, error) {
	t, _, err := parseTarget(b)
	var bad *Error
	if errors.As(err, &bad) {
		return Target{}, nil
	}
	return t, err
}

// refusal returns the error that a reply code means. The first byte of the address may say more, see reasonOctet; whatever else it is
// does not matter.
func refusal(code, addressType, first byte) error {
	switch {
	case code != replyHostUnreachable || addressType != addressIPv4:
	case first == reasonNoName:
		return Fail(NameNotFound, "the server says: there is no such name, or it has no address")
	case first == reasonTimeout:
		return Fail(Timeout, "the server says: the host does not answer")
	}
	switch code {
	case replyNotAllowed:
		return Fail(NotAllowed, "the server does not allow it")
	case replyNetworkUnreachable:
		return Fail(NetworkUnreachable, "the server says: network unreachable")
	case replyHostUnreachable:
		return Fail(HostUnreachable, "the server says: host unreachable")
	case replyRefused:
		return Fail(Refused, "the server says: connection refused")
	case replyTTLExpired:
		return Fail(Timeout, "the server says: TTL expired")
	case replyCommand, replyAddressType:
		return Fail(Unsupported, "the server does not support the request (reply %d)", code)
	default:
		return Fail(General, "the server says: general failure (reply %d)", code)
	}
}

// readFull is io.ReadFull, with an end of the connection that is never in order.
func readFull(c net.Conn, b []byte) error {
	_, err := io.ReadFull(c, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	return err
}
