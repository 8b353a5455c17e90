package config

import (
	"bytes"
	"strings"
)

// An entry is one "Key = value" line.
type entry struct {
	key, value string
	line       int

	// Of one that stands in no file.
	literal bool   // $VAR and # mean nothing in it
	hidden  string // the variable that named a file with the value, which is not to be shown; "": it may be
	faulty  bool   // it has no value, which has been told
}

// A section is a header line and the entries below it.
type section struct {
	name    string // without the brackets, as written
	line    int    // of the header
	end     int    // of the last entry, or of the header
	entries []entry
}

// scan splits a file into sections and knows nothing of their meaning. A line that is neither header, entry nor comment
// is told to fault, which must not repeat the line: it may hold a key.
func scan(text []byte, fault func(line int, message string)) []section {
	if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
		fault(1, "the file is UTF-16: save it as UTF-8")
		return nil
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if i := bytes.IndexByte(text, 0); i >= 0 {
		fault(1+bytes.Count(text[:i], []byte("\n")), "not a text file: it contains a zero byte")
		return nil
	}
	var sections []section
	line := 0
	for raw := range strings.SplitSeq(string(text), "\n") {
		line++
		s := strings.TrimSpace(uncomment(raw))
		switch key, value, isEntry := strings.Cut(s, "="); {
		case s == "":
		case s[0] == '[':
			name, rest, closed := strings.Cut(s[1:], "]")
			name = strings.TrimSpace(name)
			if rest, _, _ = strings.Cut(rest, "#"); !closed || name == "" || strings.TrimSpace(rest) != "" {
				fault(line, "a section header is a name in brackets, alone on its line: [Peer]")
				name = "" // swallows the entries below it, which would otherwise land in the wrong section
			}
			sections = append(sections, section{name: name, line: line, end: line})
		case !isEntry:
			fault(line, "neither a section header nor Key = value")
		case len(sections) == 0:
			fault(line, "stands before the first section header; a file begins with [Interface] or [Peer]")
		default:
			last := &sections[len(sections)-1]
			last.entries = append(last.entries, entry{key: strings.TrimSpace(key), value: strings.TrimSpace(value), line: line})
			last.end = line
		}
	}
	return sections
}

// uncomment cuts a comment, which starts with # or ; at the start of a line or behind white space.
func uncomment(s string) string {
	for i := range len(s) {
		if (s[i] == '#' || s[i] == ';') && (i == 0 || s[i-1] == ' ' || s[i-1] == '\t') {
			return s[:i]
		}
	}
	return s
}
