package main

import (
	"encoding/json"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// example returns the end of a help text; it is appended to the library's template.
func example(lines ...string) string {
	return "\nEXAMPLE:\n   " + strings.Join(lines, "\n   ") + "\n"
}

func jsonFlag() cli.Flag { return boolFlag("json", "print JSON") }

// boolFlag is an option without a value, off unless given.
func boolFlag(name, usage string) cli.Flag {
	env := "CULVERT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	return &cli.BoolFlag{Name: name, Usage: usage, EnvVars: []string{env}, DisableDefaultText: true}
}

// printJSON writes v for machines, and for people who look over their shoulder.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// isTerminal reports whether a person reads w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
