package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

const (
	longestAllowFile = 16 << 20 // has room for some 300,000 keys
	mostFaults       = 100      // of one allow file that are reported
)

// Allowed is a key that a relay admits.
type Allowed struct {
	Key  wgkey.Public
	Name string // a DNS label, for people; "": none

	// Where it stands.
	File string
	Line int
}

// ParseAllowed reads an allow file: one "KEY" or "KEY NAME" a line; empty lines and comments, as in a configuration, do not count,
// nor does a key that stood there before. The error wraps fs.ErrNotExist, or is Errors with every line that is not understood. With
// an error there is no list, so that no misspelt line admits anybody, and the caller keeps what it had.
func ParseAllowed(file string) ([]Allowed, error) {
	text, err := readAllowFile(file)
	if err != nil {
		return nil, fmt.Errorf("read allow file: %w", err)
	}
	return parseAllowFile(file, text.bytes)
}

// readAllowFile does not open a named pipe: a relay that runs would wait for somebody to write to it.
func readAllowFile(file string) (*content, error) {
	if info, err := os.Stat(file); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		return nil, &fs.PathError{Op: "open", Path: file, Err: errors.New("is a pipe: want a file")}
	}
	return readLimited(file, longestAllowFile)
}

func parseAllowFile(file string, text []byte) ([]Allowed, error) {
	var list []Allowed
	var faults Errors
	seen := map[wgkey.Public]bool{}
	for i, line := range allowLines(text) {
		s := strings.TrimSpace(uncomment(line))
		if s == "" {
			continue
		}
		a, err := parseAllowed(s)
		if err != nil {
			if faults = append(faults, Diagnostic{file, i + 1, err.Error()}); len(faults) == mostFaults {
				break // the wrong file, most likely
			}
			continue
		}
		if a.File, a.Line = file, i+1; !seen[a.Key] {
			seen[a.Key] = true
			list = append(list, a)
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return list, nil
}

// allowLines splits a file. Each line keeps its end, so that they make the file again.
func allowLines(text []byte) []string {
	const byteOrderMark = "\ufeff" // of some editors
	return slices.Collect(strings.Lines(strings.TrimPrefix(string(text), byteOrderMark)))
}

// parseAllowed reads "KEY" or "KEY NAME". The error does not show the key, which may be a private one by mistake.
func parseAllowed(s string) (a Allowed, err error) {
	words := strings.Fields(s)
	if len(words) == 0 || len(words) > 2 {
		return a, errors.New("want a public key, and behind it a name if it is to have one: KEY laptop")
	}
	if a.Key, err = parsePublic(words[0]); err != nil || len(words) == 1 {
		return a, err
	}
	a.Name, err = ParseName(words[1])
	return a, err
}

// String returns the line of an allow file.
func (a Allowed) String() string {
	if a.Name == "" {
		return a.Key.String()
	}
	return a.Key.String() + " " + a.Name
}
