package portmap

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

const (
	maxDepth  = 24
	maxTokens = 8192
	maxText   = 512 // bytes of an element's text that are kept; a URL has no more
)

var errXML = errors.New("not the XML that was expected")

// walkXML calls leaf for each element that has no others inside, with the local names from the root down to it and its text,
// without spaces around it. path is valid during the call. The document is one of maxBody bytes at most; it may be no deeper
// than maxDepth, and have no document type, and so no entities of its own. opened is called for each element at its start, and
// closed at its end; both may be nil.
func walkXML(b []byte, opened, closed func(path []string), leaf func(path []string, text string)) error {
	if len(b) > maxBody {
		return errTooLarge
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	d.CharsetReader = latin1
	var path []string
	var text strings.Builder
	inner := false // the element that was left last was inside of the present one
	for n := 0; ; n++ {
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errXML, err)
		}
		if n == maxTokens {
			return fmt.Errorf("%w: more than %d parts", errXML, maxTokens)
		}
		switch t := t.(type) {
		case xml.Directive:
			return fmt.Errorf("%w: it has a document type", errXML)
		case xml.StartElement:
			if len(path) == maxDepth {
				return fmt.Errorf("%w: deeper than %d", errXML, maxDepth)
			}
			path = append(path, t.Name.Local)
			text.Reset()
			inner = false
			if opened != nil {
				opened(path)
			}
		case xml.CharData:
			text.Write(t[:min(len(t), max(0, maxText-text.Len()))])
		case xml.EndElement:
			if len(path) == 0 || path[len(path)-1] != t.Name.Local {
				return fmt.Errorf("%w: </%.32s> closes nothing", errXML, t.Name.Local)
			}
			if !inner {
				leaf(path, strings.TrimSpace(text.String()))
			}
			if closed != nil {
				closed(path)
			}
			path, inner = path[:len(path)-1], true
			text.Reset()
		}
	}
	if len(path) != 0 {
		return fmt.Errorf("%w: <%.32s> is not closed", errXML, path[len(path)-1])
	}
	return nil
}

// latin1 reads the encodings that gateways claim beside UTF-8. What they send is ASCII as a rule.
func latin1(charset string, r io.Reader) (io.Reader, error) {
	switch strings.ToLower(charset) {
	case "us-ascii", "ascii", "iso-8859-1", "latin1", "windows-1252":
	default:
		return nil, fmt.Errorf("encoding %.32q is not known", charset)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxBody))
	if err != nil {
		return nil, err
	}
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return strings.NewReader(string(runes)), nil
}

// printable makes what a gateway says fit for people's eyes: one line of at most limit bytes, without control characters.
func printable(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			r = ' '
		}
		if b.Len()+len(string(r)) > limit {
			break
		}
		b.WriteRune(r)
	}
	return strings.Join(strings.Fields(b.String()), " ")
}
