package proxy

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const maxText = 500 // of what a failure says, which may quote the client's words

// httpFailure is an answer of the proxy itself.
type httpFailure struct {
	status int
	kind   string // of Proxy-Status, RFC 9209 section 2.3
	text   string // for people
	fields httpFields
	end    bool // the connection cannot be kept: nobody knows what the next bytes mean
}

func (f *httpFailure) Error() string { return f.text }

// dialFailure says why there is no connection to a target.
func dialFailure(t Target, err error) *httpFailure {
	f := &httpFailure{status: 502, text: "cannot connect to " + t.String() + ": " + err.Error()}
	switch KindOf(err) {
	case NotAllowed:
		f.status, f.kind = 403, "http_request_denied"
	case Timeout:
		f.status, f.kind = 504, "connection_timeout"
	case Exhausted:
		f.status, f.kind = 503, "connection_limit_reached"
	case Refused:
		f.kind = "connection_refused"
	case NetworkUnreachable, HostUnreachable:
		f.kind = "destination_ip_unroutable"
	case NameNotFound:
		f.kind = "dns_error"
	default:
		f.kind = "destination_unavailable"
	}
	return f
}

func loopFailure() *httpFailure {
	return &httpFailure{status: 502, kind: "proxy_loop_detected", text: "the request leads back to this proxy", end: true}
}

// fail sends a failure and reports whether the connection is kept. q is nil if there is no request that could be read.
func (x *httpConn) fail(q *httpRequest, f *httpFailure) (more bool) {
	if f.kind == "http_request_error" || f.kind == "proxy_loop_detected" {
		x.s.malformed(x.c, f)
	}
	keep := q != nil && !f.end && !q.last && !x.isRetired() && x.drain(q)
	b := f.append(make([]byte, 0, 512), q != nil && q.method == "HEAD", keep)
	if _, err := x.Write(b); err != nil {
		return false
	}
	if !keep {
		x.linger()
	}
	return keep
}

// drain reads away a small body of a request that is not served. One that waits for 100 (Continue) may never come.
func (x *httpConn) drain(q *httpRequest) bool {
	switch {
	case !q.length.body():
		return true
	case q.length.chunked || q.length.size > drainLen || q.expects:
		return false
	}
	x.readWithin(x.s.cfg.Handshake, 0)
	defer x.readWithin(0, 0)
	n, _ := io.CopyN(io.Discard, x.br, q.length.size)
	return n == q.length.size
}

// append writes the whole answer. It is plain text for every browser, as it quotes what others have said.
func (f *httpFailure) append(b []byte, headOnly, keep bool) []byte {
	text := "culvert: " + printable(f.text) + "\n"
	b = appendStatus(b, f.status, http.StatusText(f.status))
	b = appendField(b, "Date", time.Now().UTC().Format(http.TimeFormat))
	b = appendField(b, "Content-Type", "text/plain; charset=utf-8")
	b = appendField(b, "X-Content-Type-Options", "nosniff")
	b = appendField(b, "Cache-Control", "no-store")
	b = appendField(b, "Content-Length", strconv.Itoa(len(text)))
	b = appendField(b, "Proxy-Status", "culvert; error="+f.kind+"; details="+structuredString(f.text))
	b = f.fields.append(b)
	if !keep {
		b = appendField(b, "Connection", "close")
	}
	b = append(b, "\r\n"...)
	if headOnly {
		return b
	}
	return append(b, text...)
}

func appendStatus(b []byte, status int, reason string) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, reason...)
	return append(b, "\r\n"...)
}

// printable returns a text on one line and of bounded length.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}

// structuredString returns a String of RFC 8941 section 3.3.3: ASCII in quotes.
func structuredString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range printable(s) {
		switch {
		case r > '~':
			r = '?'
		case r == '"' || r == '\\':
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	b.WriteByte('"')
	return b.String()
}
