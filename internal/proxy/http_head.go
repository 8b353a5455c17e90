package proxy

import (
	"bufio"
	"errors"
	"io"
	"strings"
)

const (
	maxRequestHead  = 64 << 10
	maxResponseHead = 256 << 10
	maxTrailer      = 16 << 10
	maxFields       = 512 // what they cost besides their bytes is bounded too
)

// An httpField is one header field with the name as it was sent, so that it is passed on in the same letters.
type httpField struct{ name, value string }

// httpFields are header fields in the order in which they were sent.
type httpFields []httpField

// values returns the values of all fields of that name.
func (h httpFields) values(name string) []string {
	var all []string
	for _, f := range h {
		if strings.EqualFold(f.name, name) {
			all = append(all, f.value)
		}
	}
	return all
}

// hasToken reports whether one of the comma-separated elements of a field is token.
func (h httpFields) hasToken(name, token string) bool {
	for _, value := range h.values(name) {
		for element := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.Trim(element, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// append writes the fields in the form of RFC 9112 section 5.
func (h httpFields) append(b []byte) []byte {
	for _, f := range h {
		b = appendField(b, f.name, f.value)
	}
	return b
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// An httpHead is a start line and the fields below it.
type httpHead struct {
	start  string
	fields httpFields
}

// headReader reads lines of a head within a limit of bytes. Requests are read strictly, since what two programs read
// differently is how one request is hidden in another. Answers of old servers may fold lines and put a space before the colon
// (RFC 9112 sections 5.1 and 5.2 say how that is to be read).
type headReader struct {
	br      *bufio.Reader
	left    int
	answers bool
}

// badHead is a fault of the sender, unlike errors of the connection.
type badHead string

func (e badHead) Error() string { return string(e) }

var errHeadTooLarge = errors.New("the head is too large")

// head reads a whole head. io.EOF means that there was not a byte of it.
func (r *headReader) head() (httpHead, error) {
	var h httpHead
	for blank := 0; h.start == ""; blank++ { // RFC 9112 section 2.2: an empty line ahead of a request is to be ignored
		if blank > 2 {
			return h, badHead("empty lines instead of a request")
		}
		var err error
		if h.start, err = r.line(); err != nil {
			return h, err
		}
	}
	var err error
	h.fields, err = r.fields()
	return h, cutShort(err)
}

// cutShort names an end of the stream where it may not be.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fields reads up to the empty line, which it takes too.
func (r *headReader) fields() (httpFields, error) {
	var all httpFields
	for {
		line, err := r.line()
		switch {
		case err != nil:
			return nil, err
		case line == "":
			return all, nil
		case line[0] == ' ' || line[0] == '\t':
			if !r.answers || len(all) == 0 {
				return nil, badHead("a folded header line")
			}
			last := &all[len(all)-1]
			last.value = strings.Trim(last.value+" "+strings.Trim(withoutControls(line), " \t"), " ")
			continue
		case len(all) == maxFields:
			return nil, errHeadTooLarge
		}
		f, err := r.field(line)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
}

func (r *headReader) field(line string) (httpField, error) {
	name, value, found := strings.Cut(line, ":")
	if r.answers {
		name = strings.TrimRight(name, " \t")
	}
	if !found || !isToken(name) {
		return httpField{}, badHead("a header line without a valid name")
	}
	if strings.ContainsFunc(value, isControl) {
		if !r.answers {
			return httpField{}, badHead("a control character in the header " + name)
		}
		value = withoutControls(value)
	}
	return httpField{name, strings.Trim(value, " \t")}, nil
}

// withoutControls has spaces in their place, as RFC 9110 section 5.5 permits.
func withoutControls(s string) string {
	b := []byte(s) // byte by byte, for what is no UTF-8 is kept
	for i, c := range b {
		if isControl(rune(c)) {
			b[i] = ' '
		}
	}
	return string(b)
}

// isToken reports whether s is a token of RFC 9110 section 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// isControl reports whether a field may not have that character.
func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// line reads one line without its end, CRLF or, as RFC 9112 section 2.2 permits, LF.
func (r *headReader) line() (string, error) {
	var whole []byte
	for {
		part, err := r.br.ReadSlice('\n')
		if r.left -= len(part); r.left < 0 {
			return "", errHeadTooLarge
		}
		if err == nil && whole == nil {
			return trimLine(part)
		}
		whole = append(whole, part...)
		switch {
		case err == nil:
			return trimLine(whole)
		case errors.Is(err, bufio.ErrBufferFull):
		case len(whole) > 0:
			return "", cutShort(err)
		default:
			return "", err
		}
	}
}

func trimLine(b []byte) (string, error) {
	b = b[:len(b)-1]
	if n := len(b); n > 0 && b[n-1] == '\r' {
		b = b[:n-1]
	}
	for _, c := range b {
		if c == '\r' || c == 0 {
			return "", badHead("a control character in the head")
		}
	}
	return string(b), nil
}
