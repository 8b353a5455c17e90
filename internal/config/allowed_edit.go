package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

// allowFileHead begins an allow file that AddAllowed makes.
const allowFileHead = `# Keys that the relay admits, one a line: KEY [NAME]. "culvert relay allow" and "deny" edit this file; a running relay reads it
# again when it changes.
`

// AddAllowed adds a key to an allow file, which is made if it is not there, and reports whether the file has changed. A key that it
// has already gets the new name, if one is given. Every other line stays as it is, and the file changes at once or not at all.
func AddAllowed(file string, key wgkey.Public, name string) (changed bool, err error) {
	if name != "" {
		if name, err = ParseName(name); err != nil {
			return false, fmt.Errorf("allow key: %w", err)
		}
	}
	if key.IsZero() {
		return false, fmt.Errorf("allow key: %w", errZeroKey)
	}
	is := Allowed{Key: key, Name: name}
	return editAllowed(file, func(lines []string, list []Allowed) []string {
		if i := slices.IndexFunc(list, func(a Allowed) bool { return a.Key == key }); i >= 0 {
			if name != "" && list[i].Name != name {
				line := &lines[list[i].Line-1]
				*line = rename(*line, is)
			}
			return lines
		}
		if n := len(lines); n > 0 && !strings.HasSuffix(lines[n-1], "\n") {
			lines[n-1] += "\n"
		}
		return append(lines, is.String()+"\n")
	})
}

// RemoveAllowed takes a key out of an allow file, from every line that has it, and reports whether it was there.
func RemoveAllowed(file string, key wgkey.Public) (removed bool, err error) {
	return editAllowed(file, func(lines []string, _ []Allowed) []string {
		return slices.DeleteFunc(lines, func(line string) bool {
			a, err := parseAllowed(uncomment(line))
			return err == nil && a.Key == key
		})
	})
}

// rename gives the key of a line another name, and keeps the line's comment and end.
func rename(line string, to Allowed) string {
	rest := line[len(uncomment(line)):]
	if rest == "" {
		return to.String() + line[len(strings.TrimRight(line, "\r\n")):]
	}
	return to.String() + " " + rest
}

// editAllowed changes the lines of an allow file. One that is not understood is left alone: what is denied by such an edit might
// still be admitted by a line that nobody can read.
func editAllowed(file string, edit func(lines []string, list []Allowed) []string) (changed bool, err error) {
	unlock, err := lockFolder(filepath.Dir(file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("lock the folder of %s: %w", file, cause(err))
	}
	defer unlock()
	text, err := readAllowFile(file)
	absent := errors.Is(err, fs.ErrNotExist)
	if err != nil && !absent {
		return false, fmt.Errorf("read allow file: %w", err)
	}
	var old []byte
	if !absent {
		old = text.bytes
	}
	list, err := parseAllowFile(file, old)
	if err != nil {
		return false, fmt.Errorf("nothing was changed: %w", err)
	}
	lines := edit(allowLines(old), list)
	now := strings.Join(lines, "")
	switch {
	case now == strings.Join(allowLines(old), ""):
		return false, nil
	case absent:
		return true, makeAllowFile(file, allowFileHead+now)
	}
	return true, replaceFile(file, now)
}

// makeAllowFile gives a file that root makes the owner of its folder: the relay, most likely, which has to read it.
func makeAllowFile(file, text string) error {
	if err := WriteSecret(file, text); err != nil {
		return err
	}
	folder, err := os.Stat(filepath.Dir(file))
	if err == nil {
		err = keepOwner(file, folder)
	}
	if err != nil {
		return fmt.Errorf("create %s: give it to the owner of the folder: %w", file, cause(err))
	}
	return nil
}
