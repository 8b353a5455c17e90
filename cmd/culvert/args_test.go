package main

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestOptionsMayStandAnywhere(t *testing.T) {
	commands := newApp().Commands
	for in, want := range map[string]string{
		"culvert":                                       "culvert",
		"culvert --version":                             "culvert --version",
		"culvert check FILE --json":                     "culvert check --json FILE",
		"culvert -c FILE check":                         "culvert check -c FILE",
		"culvert peer -c FILE add NAME":                 "culvert peer add -c FILE NAME",
		"culvert peer add NAME --key K --qr":            "culvert peer add --key K --qr NAME",
		"culvert peer add NAME --key=K --allow lan":     "culvert peer add --key=K --allow lan NAME",
		"culvert peer add --qr NAME -o FILE":            "culvert peer add --qr -o FILE NAME",
		"culvert check -- --json":                       "culvert check -- --json",
		"culvert check --json -- -c":                    "culvert check --json -- -c",
		"culvert check -":                               "culvert check -",
		"culvert check FILE -c":                         "culvert check -c FILE",
		"culvert check FILE -h":                         "culvert check --help",
		"culvert --help check":                          "culvert check --help",
		"culvert peer remove add":                       "culvert peer remove add",
		"culvert peer add list --qr":                    "culvert peer add --qr list",
		"culvert frob check":                            "culvert frob check",
		"culvert peer add X --generate-bash-completion": "culvert peer add X --generate-bash-completion",
	} {
		if got := strings.Join(reorder(commands, strings.Fields(in)), " "); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

// What every command promises: each option is an environment variable too, and the help text ends with an example.
func TestEveryCommandFollowsTheConventions(t *testing.T) {
	var check func(path string, list []*cli.Command)
	check = func(path string, list []*cli.Command) {
		for _, c := range list {
			name := path + " " + c.Name
			for _, f := range c.Flags {
				doc, ok := f.(cli.DocGenerationFlag)
				want := "CULVERT_" + strings.ToUpper(strings.ReplaceAll(f.Names()[0], "-", "_"))
				if !ok || len(doc.GetEnvVars()) != 1 || doc.GetEnvVars()[0] != want {
					t.Errorf("%s --%s: want the variable %s", name, f.Names()[0], want)
				}
			}
			if c.Usage == "" || strings.HasSuffix(c.Usage, ".") {
				t.Errorf("%s: usage %q is empty or ends with a full stop", name, c.Usage)
			}
			var help strings.Builder
			args := append(strings.Fields(name), "--help")
			if status := run(args, strings.NewReader(""), &help, io.Discard); status != 0 {
				t.Errorf("%v: exit status %d", args, status)
			}
			_, example, ok := strings.Cut(help.String(), "\nEXAMPLE:\n   ")
			if !ok || strings.Contains(example, "\n\n") || strings.Contains(example, "OPTIONS") {
				t.Errorf("%s: the help does not end with an example:\n%s", name, help.String())
			}
			if _, command, _ := strings.Cut(example, name); ok && command == "" {
				t.Errorf("%s: the example shows another command: %s", name, example)
			}
			check(name, c.Subcommands)
		}
	}
	check("culvert", newApp().Commands)
}

func TestVersionText(t *testing.T) {
	for want, v := range map[string]versionInfo{
		"(devel)":              {Version: "(devel)"},
		"(devel) 0123456789ab": {Version: "(devel)", Revision: "0123456789abcdef"},
		"v1.2.3":               {Version: "v1.2.3", Revision: "0123456789abcdef"},
	} {
		if got := fmt.Sprint(v); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
