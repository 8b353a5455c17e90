package config

import (
	"cmp"
	"fmt"
	"slices"
)

// What stands for a file in diagnostics where a configuration has none.
const (
	environmentName = "environment"
	textName        = "configuration"
)

// An origin is a place that is no line of a file: a variable of the environment, or an option of the command line. Drafts know it by
// a negative number where they otherwise have a line.
type origin struct {
	name   string
	index  int  // which of the variable's several values; 0: it has one, or it is about a section
	option bool // of the command line
}

// addOrigin returns the number that stands for a place.
func (l *loader) addOrigin(o origin) (line int) {
	l.origins = append(l.origins, o)
	l.known(o.name)
	return -len(l.origins)
}

// known gives a name its rank in the order of diagnostics.
func (l *loader) known(name string) {
	if !slices.Contains(l.files, name) {
		l.files = append(l.files, name)
	}
}

// isOption reports whether a line is the number of an option.
func (l *loader) isOption(line int) bool { return line < 0 && l.origins[-line-1].option }

// place resolves a line of a file, or the number of an origin.
func (l *loader) place(file string, line int) (string, int) {
	if line < 0 {
		o := l.origins[-line-1]
		return o.name, o.index
	}
	return cmp.Or(file, l.unnamed), line
}

// standsAt is place in the current file, for what keeps where it stands.
func (l *loader) standsAt(line int) (string, int) { return l.place(l.file, line) }

// diagnostic is about one place.
func (l *loader) diagnostic(file string, line int, message string) Diagnostic {
	file, line = l.place(file, line)
	return Diagnostic{file, line, message}
}

// toSet names the variable for a key that a section of the environment lacks, to end a message; "" for sections from elsewhere.
func (l *loader) toSet(line int, key string) string {
	if line >= 0 || l.isOption(line) {
		return ""
	}
	section, _ := l.place("", line)
	return ": set " + section + "_" + envKey(key)
}

// at names another place of the configuration in a message: "on line 7", "in CULVERT_SOCKS5_LISTEN".
func (l *loader) at(line int) string {
	if line > 0 {
		return fmt.Sprintf("on line %d", line)
	}
	return "in " + Position(l.place(l.file, line))
}
