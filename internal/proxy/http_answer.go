package proxy

import (
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxInterims = 64                     // answers with 1xx to one request
	settleTime  = 100 * time.Millisecond // that the last byte of a request may take after the answer to it
	inviteTime  = 3 * time.Second        // that a server may leave a client waiting for 100 (Continue)
)

// httpAnswer is the head of a server's answer.
type httpAnswer struct {
	status int
	reason string
	minor  int
	fields httpFields
	length bodyLength
}

var (
	errInterims = badHead("too many interim answers")
	errUnasked  = badHead("it switches protocols without being asked")
	errProxied  = badHead("it answers 407, as only a proxy may")
)

// answerFailure says why a server that was reached has not answered.
func answerFailure(t Target, err error) *httpFailure {
	f := &httpFailure{status: 502, text: t.String() + " has not answered: " + err.Error()}
	var bad badHead
	switch {
	case isTimeout(err):
		f.status, f.kind = 504, "connection_read_timeout"
	case errors.Is(err, errHeadTooLarge):
		f.kind, f.text = "http_response_header_section_size", "the answer of "+t.String()+" has too large a header"
	case errors.As(err, &bad), errors.Is(err, errCoding), errors.Is(err, errLength):
		f.kind, f.text = "http_protocol_error", "the answer of "+t.String()+" is no valid HTTP: "+err.Error()
	case errors.Is(err, io.EOF):
		f.kind, f.text = "connection_terminated", t.String()+" has closed the connection without an answer"
	default:
		f.kind = "connection_terminated"
	}
	return f
}

// await reads heads up to that of the final answer, or of 101. Interim ones are passed on as they come.
func (e *httpExchange) await() (*httpAnswer, error) {
	for {
		head, err := (&headReader{br: e.up.br, left: maxResponseHead, answers: true}).head()
		if err != nil {
			return nil, err
		}
		res, err := parseAnswer(head, e.q.method)
		switch {
		case err != nil:
			return nil, err
		case res.status == 407:
			return nil, errProxied // the client would send its credentials for this proxy again and again
		case res.status == 101 && e.q.upgrade == "":
			return nil, errUnasked
		case res.status == 101 || res.status >= 200:
			return res, nil
		}
		if e.interims++; e.interims > maxInterims {
			return nil, errInterims
		}
		if err := e.passInterim(res); err != nil {
			e.cancel(errGone)
			return nil, err
		}
	}
}

func parseAnswer(h httpHead, method string) (*httpAnswer, error) {
	version, rest, _ := strings.Cut(h.start, " ")
	code, reason, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	minor, ok := strings.CutPrefix(version, "HTTP/1.")
	status, err := strconv.Atoi(code)
	if !ok || !isDigit(minor) || err != nil || len(code) != 3 || status < 100 {
		return nil, badHead("it does not begin with HTTP/1.1 and a status")
	}
	res := &httpAnswer{status: status, reason: withoutControls(reason), minor: int(minor[0] - '0'), fields: h.fields}
	res.length, err = answerLength(method, status, res.minor, h.fields)
	return res, err
}

// passInterim sends an answer with 1xx to the client. HTTP/1.0 has none (RFC 9110 section 15.2).
func (e *httpExchange) passInterim(res *httpAnswer) error {
	x := e.x
	x.writing.Lock()
	defer x.writing.Unlock()
	if e.q.minor == 0 || res.status == 100 && e.invited {
		return nil
	}
	if res.status == 100 {
		e.invited = true
	}
	b := appendStatus(nil, res.status, res.reason)
	b = endToEnd(res.fields).without("Content-Length").append(b)
	_, err := x.write(append(b, "\r\n"...))
	return err
}

// invite sends 100 (Continue) for a server that does not know of it, so that a client that waits for nothing else is not left
// hanging.
func (e *httpExchange) invite() {
	x := e.x
	x.writing.Lock()
	defer x.writing.Unlock()
	if x.final || e.invited || e.begun.Load() {
		return
	}
	e.invited = true
	x.write([]byte("HTTP/1.1 100 Continue\r\n\r\n")) // if it fails, the answer does
}

// withdraw ends the time of invite, which must not write into the next exchange.
func (e *httpExchange) withdraw(t *time.Timer) {
	t.Stop()
	e.x.writing.Lock()
	e.invited = true
	e.x.writing.Unlock()
}

// pass sends the final answer to the client. cut takes away what would close the server's connection with the client's.
func (e *httpExchange) pass(res *httpAnswer, cut func() bool) (t *tunnel, more bool) {
	if res.status == 101 {
		return e.switchProtocols(res, cut)
	}
	x, up := e.x, e.up
	keep := !e.q.last && e.taken.Load() && !x.isRetired() // an answer ahead of the request's end: the client may stop sending, or not
	chunked := res.length.chunked || res.length.untilClose
	if e.q.minor == 0 {
		chunked = false
	}
	c := httpCopy{
		dst: x, src: newBody(up.br, res.length), chunked: chunked && res.length.body(),
		head: e.answerHead(res, chunked, keep), ready: up.br.Buffered() > 0,
	}
	err := c.run(&httpBuffers)
	e.up2down = c.moved
	whole := err == nil && e.settled(res)
	if !cut() || !whole { // the upload may wait for the server
		up.c.Close()
		whole = false
	}
	e.watch.stop()
	if whole && res.reusable() {
		up.doubtful = !res.length.body()
		x.pool.put(up)
	} else {
		up.close()
	}
	switch {
	case err != nil:
		e.failed = err
		if c.failed == nil && c.head != nil {
			x.fail(nil, answerFailure(e.a.target, err))
		} else if c.failed == nil && !chunked && res.length.size == 0 {
			resetClient(x.c) // the end of this body is the end of the connection, and this is not it
		}
		return nil, false
	case !keep:
		x.linger()
		return nil, false
	}
	return nil, true
}

// settled waits for the end of the request, and reports whether the server has all of it. An answer may come before the goroutine
// that has sent the last byte gets to say so; and a server that answers early and keeps its connection reads on.
func (e *httpExchange) settled(res *httpAnswer) bool {
	switch {
	case e.uploaded == nil:
	case e.taken.Load():
		e.uploadEnds(settleTime)
	case res.reusable() && (e.begun.Load() || !e.q.expects):
		for moved := e.up.moved.Load(); !e.uploadEnds(lingerTime); {
			last := moved
			if moved = e.up.moved.Load(); moved == last {
				break
			}
		}
	}
	return e.sent.Load()
}

// uploadEnds waits for that so long.
func (e *httpExchange) uploadEnds(limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-e.uploaded:
		return true
	case <-t.C:
		return false
	}
}

// resetClient closes a connection so that the other side cannot take it for an end in order.
func resetClient(c net.Conn) {
	if p, ok := c.(*prefixConn); ok {
		c = p.Conn
	}
	switch c := c.(type) {
	case interface{ Abort() }:
		c.Abort()
	case interface{ SetLinger(int) error }:
		c.SetLinger(0) // if it fails the connection is closed already
	}
	c.Close()
}

// reusable reports whether the server will take another request on its connection.
func (r *httpAnswer) reusable() bool {
	return r.minor > 0 && !r.length.untilClose && !r.length.unclear && !r.fields.hasToken("Connection", "close")
}

// answerHead writes the head for the client.
func (e *httpExchange) answerHead(res *httpAnswer, chunked, keep bool) []byte {
	b := appendStatus(make([]byte, 0, 1024), res.status, res.reason)
	fields := endToEnd(res.fields)
	lengths := fields.values("Content-Length")
	if chunked || res.length.body() && res.length.size == 0 || res.status == 204 || len(lengths) > 1 {
		fields = fields.without("Content-Length")
	}
	b = fields.append(b)
	if len(lengths) > 1 && !res.length.chunked && res.status != 204 && !slices.ContainsFunc(lengths, func(l string) bool { return l != lengths[0] }) {
		b = appendField(b, "Content-Length", lengths[0])
	}
	var options []string
	if res.status == 426 { // it says what to upgrade to
		if protocols := res.fields.values("Upgrade"); len(protocols) > 0 {
			b = appendField(b, "Upgrade", strings.Join(protocols, ", "))
			options = append(options, "upgrade")
		}
	}
	if !keep {
		options = append(options, "close")
	}
	if len(options) > 0 {
		b = appendField(b, "Connection", strings.Join(options, ", "))
	}
	if chunked {
		if names := res.fields.values("Trailer"); len(names) > 0 {
			b = appendField(b, "Trailer", strings.Join(names, ", "))
		}
		b = appendField(b, "Transfer-Encoding", "chunked")
	}
	return append(b, "\r\n"...)
}

// switchProtocols makes a tunnel of both connections (RFC 9110 section 7.8).
func (e *httpExchange) switchProtocols(res *httpAnswer, cut func() bool) (t *tunnel, more bool) {
	x, up := e.x, e.up
	if !cut() {
		e.watch.stop()
		up.close()
		return nil, false
	}
	e.watch.stop()
	b := appendStatus(nil, res.status, res.reason)
	b = endToEnd(res.fields).without("Content-Length").append(b)
	b = appendField(b, "Upgrade", strings.Join(res.fields.values("Upgrade"), ", "))
	b = append(appendField(b, "Connection", "Upgrade"), "\r\n"...)
	ahead, _ := up.br.Peek(up.br.Buffered())
	_, err := x.Write(append(b, ahead...))
	up.giveReader()
	if err == nil {
		err = up.c.SetDeadline(time.Time{})
	}
	if err != nil {
		up.close()
		return nil, false
	}
	x.c.SetWriteDeadline(time.Time{})
	return &tunnel{request: e.request, begin: e.begin, client: x.detach(), target: up.c}, false
}
