package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// refusal is an answer that is not the upgrade asked for.
type refusal struct {
	status     int // 0: it is not HTTP, or there is none
	text       string
	retryAfter time.Duration // what the answer says, 0 if nothing
}

// Error returns the status and what it means.
func (r *refusal) Error() string { return r.text }

// spoiled reports whether something on the way, rather than the relay, may have given the answer: then WebSocket may pass.
func (r *refusal) spoiled() bool {
	switch {
	case r.status >= 300 && r.status <= 399, r.status == http.StatusTooManyRequests, r.status == http.StatusServiceUnavailable:
		return false
	}
	return true
}

// newRefusal describes an answer. Texts of the other side are not repeated.
func newRefusal(answer *http.Response) *refusal {
	r := &refusal{status: answer.StatusCode, text: "answered " + status(answer)}
	switch {
	case answer.StatusCode >= 300 && answer.StatusCode <= 399:
		r.text += ", a redirect" + location(answer) + ", which is not followed"
	case answer.StatusCode == http.StatusSwitchingProtocols:
		r.text += " to a protocol that is not DERP"
	}
	if seconds, err := strconv.ParseUint(answer.Header.Get("Retry-After"), 10, 16); err == nil {
		r.retryAfter = time.Duration(seconds) * time.Second
	}
	return r
}

// location says where a redirect points, as far as it may be shown.
func location(answer *http.Response) string {
	u, err := url.Parse(answer.Header.Get("Location"))
	if err != nil || u.Host == "" || len(u.Host) > 255 {
		return ""
	}
	return fmt.Sprintf(" to %q", (&url.URL{Scheme: u.Scheme, Host: u.Host}).String())
}

// status returns the number and the standard's words for it.
func status(answer *http.Response) string {
	if text := http.StatusText(answer.StatusCode); text != "" {
		return strconv.Itoa(answer.StatusCode) + " " + text
	}
	return "status " + strconv.Itoa(answer.StatusCode)
}

var (
	errNoAnswer = errors.New("closed without an answer")
	errNotHTTP  = errors.New("the answer is not HTTP")
)

// answerError says why no HTTP answer could be read.
func answerError(err error, limit *io.LimitedReader) error {
	var failed net.Error
	switch {
	case limit.N <= 0:
		return fmt.Errorf("the answer's header is longer than %d bytes", maxHeader)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errNoAnswer
	case errors.As(err, &failed):
		return err
	}
	return errNotHTTP
}

// headConn is a connection some of whose bytes have been read already.
type headConn struct {
	net.Conn
	head []byte
}

// leftOver returns c with what r has read too much in front.
func leftOver(c net.Conn, r *bufio.Reader) net.Conn {
	if r.Buffered() == 0 {
		return c
	}
	head, _ := r.Peek(r.Buffered())
	return &headConn{c, append([]byte(nil), head...)}
}

func (c *headConn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// interrupt makes reads and writes of c fail once ctx is done. The function it returns undoes that, and must be called.
func interrupt(ctx context.Context, c net.Conn) func() {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.SetDeadline(time.Unix(1, 0))
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired
		}
		c.SetDeadline(time.Time{})
	}
}
