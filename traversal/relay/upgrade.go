package relay

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/coder/websocket"

	"culvert.dev/culvert/traversal/relay/derp"
)

// request returns the head of the HTTP request; extra are more lines of it.
func (s *session) request(extra string) string {
	return "GET " + derp.Path + " HTTP/1.1\r\nHost: " + s.target.authority() + "\r\nUser-Agent: culvert\r\n" +
		"Connection: Upgrade\r\nUpgrade: " + derp.UpgradeProtocol + "\r\n" + extra + "\r\n"
}

// upgrade asks for DERP and waits for the answer. That there is none may be the doing of something on the way; a fast start is not
// judged so, since the certificate that allows it has come from the relay unchanged.
func (s *session) upgrade() error {
	if _, err := io.WriteString(s.stream, s.request("")); err != nil {
		return err
	}
	limit := &io.LimitedReader{R: s.stream, N: maxHeader}
	r := bufio.NewReader(limit)
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		if err = answerError(err, limit); err == errNoAnswer || err == errNotHTTP {
			err = &refusal{text: err.Error()}
		}
		return err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(answer.Header.Get("Upgrade"), derp.UpgradeProtocol) {
		return newRefusal(answer)
	}
	s.stream = leftOver(s.stream, r)
	return nil
}

// fastStart sends the request and, without waiting, who we are: the certificate has told the relay's key. A relay that takes the
// connection answers with its first frame; one that does not may answer in HTTP.
func (s *session) fastStart() error {
	hello, err := s.clientInfo(s.meta)
	if err != nil {
		return err
	}
	head := s.request(derp.HeaderFastStart + ": 1\r\n")
	if _, err := s.stream.Write(append([]byte(head), hello...)); err != nil {
		return err
	}
	limit := &io.LimitedReader{R: s.stream, N: maxHeader}
	r := bufio.NewReader(limit)
	begin, err := r.Peek(derp.HeaderLen)
	if err != nil {
		return answerError(err, limit)
	}
	if bytes.Equal(begin, []byte("HTTP/")) {
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			return answerError(err, limit)
		}
		return newRefusal(answer)
	}
	s.stream = leftOver(s.stream, r)
	return nil
}

// clientInfo returns the frame that says who we are to the owner of server.
func (s *session) clientInfo(server [derp.KeyLen]byte) ([]byte, error) {
	payload, err := derp.SealClientInfo(s.dialer.Key, server, derp.ClientInfo{Version: derp.Version, CanAckPings: true})
	if err != nil {
		return nil, err
	}
	return derp.AppendFrame(nil, derp.FrameClientInfo, payload), nil
}

// upgradeWebSocket makes the stream one of WebSocket messages (RFC 6455), whose boundaries mean nothing.
func (s *session) upgradeWebSocket(ctx context.Context) error {
	below := make(chan net.Conn, 1)
	below <- s.stream
	once := func(context.Context, string, string) (net.Conn, error) {
		select {
		case c := <-below:
			return c, nil
		default:
			return nil, net.ErrClosed // a second connection would not be the one that has been checked
		}
	}
	transport := &http.Transport{DialContext: once, DialTLSContext: once, MaxResponseHeaderBytes: maxHeader}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ws, answer, err := websocket.Dial(ctx, s.target.url+derp.Path, &websocket.DialOptions{
		HTTPClient:   client,
		HTTPHeader:   http.Header{"User-Agent": {"culvert"}},
		Subprotocols: []string{derp.Subprotocol},
	})
	if err != nil {
		transport.CloseIdleConnections()
		if answer != nil && answer.StatusCode != http.StatusSwitchingProtocols {
			return newRefusal(answer)
		}
		return err
	}
	// The context is that of the stream's life, which the connection below ends.
	s.stream = messageConn{websocket.NetConn(context.WithoutCancel(ctx), ws, websocket.MessageBinary)}
	s.end = func() { ws.CloseNow() }
	if ws.Subprotocol() != derp.Subprotocol {
		return fmt.Errorf("the WebSocket server does not speak %q", derp.Subprotocol)
	}
	return nil
}

// messageLen is the most bytes that go in one WebSocket message. Servers have limits: that of stock derper is 32,768.
const messageLen = 16 << 10

// messageConn writes in pieces, each of which becomes a WebSocket message.
type messageConn struct{ net.Conn }

func (c messageConn) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		var written int
		written, err = c.Conn.Write(b[:min(len(b), messageLen)])
		n, b = n+written, b[written:]
	}
	return n, err
}
