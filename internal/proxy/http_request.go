package proxy

import (
	"bufio"
	"errors"
	"strconv"
	"strings"
)

// An httpRequest is a request as the client sent it, and what the proxy understood.
type httpRequest struct {
	method, uri string
	minor       int // of HTTP/1.minor
	fields      httpFields
	length      bodyLength
	user, exit  string // of the one who asks

	expects bool // 100-continue
	upgrade string
	last    bool // no further request follows on this connection
}

// readRequest reads a head and refuses what is ambiguous. Faults of the client are an *httpFailure, those of the connection are
// returned as they are; io.EOF: the client has no more requests.
func readRequest(br *bufio.Reader) (*httpRequest, error) {
	r := &headReader{br: br, left: maxRequestHead}
	head, err := r.head()
	switch {
	case err != nil && r.left == maxRequestHead: // nothing was asked, so nothing is answered
		return nil, err
	case err != nil:
		return nil, headFailure(err)
	}
	q := &httpRequest{fields: head.fields}
	if f := q.startLine(head.start); f != nil {
		return nil, f
	}
	if len(q.fields.values("Host")) > 1 {
		return nil, malformed("more than one Host")
	}
	if q.length, err = requestLength(q.minor, q.fields); err != nil {
		f := malformed(err.Error())
		if errors.Is(err, errCoding) {
			f.status = 501
		}
		return nil, f
	}
	q.last = q.minor == 0 || q.fields.hasToken("Connection", "close") || q.fields.hasToken("Proxy-Connection", "close")
	q.expects = q.minor > 0 && q.length.body() && q.fields.hasToken("Expect", "100-continue")
	if q.minor > 0 && !q.length.body() && q.fields.hasToken("Connection", "upgrade") && !q.fields.hasToken("Upgrade", "h2c") {
		q.upgrade = strings.Join(q.fields.values("Upgrade"), ", ") // the upgrade to h2c is withdrawn (RFC 9113 section 3.1)
	}
	return q, nil
}

func malformed(text string) *httpFailure {
	return &httpFailure{status: 400, kind: "http_request_error", text: "this is no valid HTTP request: " + text, end: true}
}

// headFailure tells failures of the connection, which it returns as they are, from those of the sender.
func headFailure(err error) error {
	var bad badHead
	switch {
	case errors.Is(err, errHeadTooLarge):
		return &httpFailure{status: 431, kind: "http_request_error", text: "the request's header is larger than this proxy takes", end: true}
	case errors.As(err, &bad):
		return malformed(err.Error())
	case isTimeout(err):
		return &httpFailure{status: 408, kind: "http_request_error", text: "the request took too long to arrive", end: true}
	default:
		return err
	}
}

func (q *httpRequest) startLine(line string) *httpFailure {
	parts := strings.Split(line, " ")
	if len(parts) != 3 {
		return malformed("the first line is not METHOD ADDRESS HTTP/1.1")
	}
	q.method, q.uri = parts[0], parts[1]
	version, ok := strings.CutPrefix(parts[2], "HTTP/")
	major, minor, dotted := strings.Cut(version, ".")
	switch {
	case !isToken(q.method):
		return malformed("the method is not a word")
	case !ok || !dotted || !isDigit(major) || !isDigit(minor):
		return malformed("the first line does not end with HTTP/1.1")
	case major != "1":
		return &httpFailure{status: 505, kind: "http_request_error", text: "this proxy speaks HTTP/1.1 and HTTP/1.0", end: true}
	}
	for i := range len(q.uri) {
		if c := q.uri[i]; c < ' ' || c == 0x7f {
			return malformed("a control character in the address")
		}
	}
	if q.uri == "" {
		return malformed("no address")
	}
	if minor != "0" {
		q.minor = 1
	}
	return nil
}

func isDigit(s string) bool { return len(s) == 1 && s[0] >= '0' && s[0] <= '9' }

// repeatable reports whether the request may be sent again when the server closed an idle connection under it (RFC 9112 section 9.3.1).
func (q *httpRequest) repeatable() bool {
	switch q.method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PROPFIND", "REPORT", "SEARCH":
		return !q.length.body() && q.upgrade == ""
	}
	return false
}

// appendHead writes the head for the server. The address decides over the Host field (RFC 9112 section 3.2.2). There is no
// Via: it would tell every server that there is a proxy. Requests cannot run in circles all the same, since
// what is forwarded has no host in its first line, and this proxy refuses such requests.
func (q *httpRequest) appendHead(b []byte, a httpAddress) []byte {
	b = append(b, q.method...)
	b = append(b, ' ')
	b = append(b, a.path...)
	b = append(b, " HTTP/1.1\r\n"...)
	b = appendField(b, "Host", a.authority)
	fields := endToEnd(q.fields).without("Host")
	if !q.expects {
		fields = fields.without("Expect")
	}
	if q.length.chunked {
		fields = fields.without("Content-Length")
	}
	if q.method == "OPTIONS" {
		fields = lowerMaxForwards(fields)
	}
	b = fields.append(b)
	var options []string
	if q.fields.hasToken("TE", "trailers") {
		b = appendField(b, "TE", "trailers")
		options = append(options, "TE")
	}
	if q.upgrade != "" {
		b = appendField(b, "Upgrade", q.upgrade)
		options = append(options, "Upgrade")
	}
	if len(options) > 0 {
		b = appendField(b, "Connection", strings.Join(options, ", "))
	}
	if q.length.chunked {
		if names := q.fields.values("Trailer"); len(names) > 0 {
			b = appendField(b, "Trailer", strings.Join(names, ", "))
		}
		b = appendField(b, "Transfer-Encoding", "chunked")
	}
	return append(b, "\r\n"...)
}

// maxForwards returns the value of Max-Forwards (RFC 9110 section 7.6.2), -1 without one.
func (q *httpRequest) maxForwards() int {
	values := q.fields.values("Max-Forwards")
	if len(values) != 1 {
		return -1
	}
	n, err := strconv.ParseUint(values[0], 10, 31)
	if err != nil {
		return -1
	}
	return int(n)
}

func lowerMaxForwards(h httpFields) httpFields {
	for i, f := range h {
		if n, err := strconv.ParseUint(f.value, 10, 31); err == nil && n > 0 && strings.EqualFold(f.name, "Max-Forwards") {
			h[i].value = strconv.FormatUint(n-1, 10)
		}
	}
	return h
}
