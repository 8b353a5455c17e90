package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
)

// printEnvList prints the variables that a configuration can be made of, and those of the options of culvert up.
func printEnvList(w io.Writer, json bool) error {
	keys := config.EnvironmentKeys()
	if json {
		return printJSON(w, keys)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "Variables of the configuration. <N> tells sections of one kind apart: 1, 2, …; the first may do without _<N>. With\n"+
		"_FILE behind its name a variable names a file that holds the value. Where several values are possible (*), each\n"+
		"stands on a line of its own, or a semicolon stands between them (not between users, whose passwords may have one).\n"+
		"Variables win over the file: a key that both have is the variable's, and sections that may be repeated are added.\n\n")
	printEnvKeys(t, keys)
	printEnvOptions(t, upCommand())
	return t.Flush()
}

// printRelayEnvList is printEnvList for a relay.
func printRelayEnvList(w io.Writer, json bool) error {
	keys := config.RelayEnvironmentKeys()
	if json {
		return printJSON(w, keys)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "Variables of the configuration of a relay. With _FILE behind its name a variable names a file that holds the value.\n"+
		"Where several values are possible (*), each stands on a line of its own, or a semicolon stands between them.\n"+
		"Variables win over the file: a key that both have is the variable's.\n\n")
	printEnvKeys(t, keys)
	printEnvOptions(t, relayCommand())
	return t.Flush()
}

func printEnvKeys(w io.Writer, keys []config.EnvironmentKey) {
	for _, k := range keys {
		several := ""
		if k.List {
			several = "*"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", k.Name, several, k.Doc)
	}
}

// printEnvOptions prints the variables of a command's options.
func printEnvOptions(w io.Writer, c *cli.Command) {
	fmt.Fprintf(w, "\nOptions of culvert %s.\n\n", c.Name)
	for _, f := range c.Flags {
		if doc, ok := f.(cli.DocGenerationFlag); ok {
			fmt.Fprintf(w, "%s\t\tas --%s\n", doc.GetEnvVars()[0], f.Names()[0])
		}
	}
}

// printVariables tells what comes from the environment, but no values.
func printVariables(w io.Writer, list []config.Variable) {
	for _, v := range list {
		instead := ""
		if v.Replaces != "" {
			instead = ", instead of " + v.Replaces
		}
		fmt.Fprintf(w, "%s: %s in [%s]%s\n", v.Name, v.Key, v.Section, instead)
	}
}

// nameOf is what a configuration is called where a file's name would stand.
func nameOf(file string) string { return cmp.Or(file, "environment") }
