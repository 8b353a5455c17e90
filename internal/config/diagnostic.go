package config

import (
	"fmt"
	"strings"
)

// Diagnostic is an error or a warning about one place of a configuration.
type Diagnostic struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // 0: the file as a whole
	Message string `json:"message"`        // may go on below: the line in question, with a mark under a word
}

// String returns "FILE:LINE: message".
func (d Diagnostic) String() string { return Position(d.File, d.Line) + ": " + d.Message }

// Position names a place of a configuration: "FILE:LINE", or what stands for a file, such as a variable or an option, which has line 0
// unless it has several values.
func Position(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// Errors is everything that is wrong with a configuration, in the order of its lines. It is never empty as an error.
type Errors []Diagnostic

// Error returns the diagnostics one below the other.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, d := range e {
		lines[i] = d.String()
	}
	return strings.Join(lines, "\n")
}
