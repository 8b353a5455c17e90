package proxy

import (
	"bufio"
	"errors"
	"io"
	"net/http/httputil"
	"strings"
)

// bodyLength is how the end of a message is found (RFC 9112 section 6.3). The zero value: there is no body.
type bodyLength struct {
	size       int64 // of a body that is neither chunked nor until the close
	chunked    bool
	untilClose bool
	unclear    bool // framed in a way that leaves doubt: the connection is not used again
}

func (l bodyLength) body() bool { return l.size > 0 || l.chunked || l.untilClose }

var (
	errCoding   = errors.New("a transfer coding other than chunked")
	errLength   = errors.New("no valid Content-Length")
	errTwofold  = errors.New("both Content-Length and Transfer-Encoding")
	errOldChunk = errors.New("a transfer coding in HTTP/1.0")
)

// requestLength refuses whatever another program could read otherwise.
func requestLength(minor int, h httpFields) (bodyLength, error) {
	codings, lengths := h.values("Transfer-Encoding"), h.values("Content-Length")
	switch {
	case len(codings) > 0 && len(lengths) > 0:
		return bodyLength{}, errTwofold
	case len(codings) > 0 && minor == 0:
		return bodyLength{}, errOldChunk
	case len(codings) > 1 || len(codings) == 1 && !strings.EqualFold(codings[0], "chunked"):
		return bodyLength{}, errCoding
	case len(codings) == 1:
		return bodyLength{chunked: true}, nil
	case len(lengths) == 0:
		return bodyLength{}, nil
	case len(lengths) > 1:
		return bodyLength{}, errLength
	}
	n, err := contentLength(lengths[0])
	return bodyLength{size: n}, err
}

// answerLength is for a final answer to a request of that method.
func answerLength(method string, status, minor int, h httpFields) (bodyLength, error) {
	if method == "HEAD" || status/100 == 1 || status == 204 || status == 304 {
		return bodyLength{}, nil
	}
	codings, lengths := h.values("Transfer-Encoding"), h.values("Content-Length")
	switch {
	case len(codings) > 1 || len(codings) == 1 && !strings.EqualFold(codings[0], "chunked"):
		return bodyLength{}, errCoding
	case len(codings) == 1:
		return bodyLength{chunked: true, unclear: len(lengths) > 0 || minor == 0}, nil
	case len(lengths) == 0:
		return bodyLength{untilClose: true}, nil
	}
	n, err := contentLength(lengths[0])
	for _, other := range lengths[1:] {
		if other != lengths[0] {
			err = errLength
		}
	}
	return bodyLength{size: n}, err
}

func contentLength(s string) (int64, error) {
	if s == "" || len(s) > 18 { // 18 digits fit
		return 0, errLength
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, errLength
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, nil
}

// An httpBody reads one body out of a connection, and no byte more. It returns io.EOF with the last bytes where it can, and
// io.ErrUnexpectedEOF for a body that is cut short.
type httpBody struct {
	br      *bufio.Reader
	left    int64
	chunks  io.Reader // nil unless chunked
	toClose bool
	ended   bool       // nothing of it is left on the connection
	ending  bool       // the last chunk has come, its trailer has not
	trailer httpFields // once ended
}

func newBody(br *bufio.Reader, l bodyLength) *httpBody {
	b := &httpBody{br: br, left: l.size, toClose: l.untilClose, ended: !l.body()}
	if l.chunked {
		b.chunks = httputil.NewChunkedReader(br)
	}
	return b
}

func (b *httpBody) Read(p []byte) (int, error) {
	switch {
	case b.ended:
		return 0, io.EOF
	case b.toClose:
		n, err := b.br.Read(p)
		b.ended = err == io.EOF
		return n, err
	case b.chunks != nil:
		return b.readChunks(p)
	}
	n, err := b.br.Read(p[:min(int64(len(p)), b.left)])
	if b.left -= int64(n); b.left == 0 {
		b.ended = true
		return n, io.EOF
	}
	return n, cutShort(err)
}

func (b *httpBody) readChunks(p []byte) (n int, err error) {
	if !b.ending {
		n, err = b.chunks.Read(p)
		if err != io.EOF {
			return n, err
		}
		b.ending = true
		if n > 0 && !b.endsHere() { // the trailer may take its time: these bytes go first
			return n, nil
		}
	}
	b.trailer, err = (&headReader{br: b.br, left: maxTrailer}).fields()
	if err != nil {
		return n, cutShort(err)
	}
	b.ended = true
	return n, io.EOF
}

// endsHere reports whether the empty line after the last chunk is here already.
func (b *httpBody) endsHere() bool {
	if b.br.Buffered() < 2 {
		return false
	}
	next, _ := b.br.Peek(2)
	return string(next) == "\r\n"
}
