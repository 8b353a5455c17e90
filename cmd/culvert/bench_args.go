package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// separate takes apart the options of bench that are written together, as users of iperf3 are used to: "-P4 -t5 -uR". What makes no
// sense in this way is left as it is, to be refused.
func separate(commands []*cli.Command, args []string) []string {
	i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.Name == "bench" })
	if len(args) < 3 || args[1] != "bench" || i < 0 {
		return args
	}
	bench := commands[i]
	out := slices.Clone(args[:2])
	for i := 2; i < len(args); i++ {
		if args[i] == "--" {
			return append(out, args[i:]...)
		}
		options := separated(bench, args[i])
		out = append(out, options...)
		last := options[len(options)-1]
		if strings.HasPrefix(last, "-") && takesValue(bench, strings.TrimLeft(last, "-")) && i+1 < len(args) {
			i++
			out = append(out, args[i]) // a value, whatever it looks like
		}
	}
	return out
}

// separated is one argument taken apart.
func separated(bench *cli.Command, arg string) []string {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	if len(arg) < 3 || arg[0] != '-' || arg[1] == '-' || hasOption(bench, name) {
		return []string{arg}
	}
	var options []string
	for rest := arg[1:]; rest != ""; {
		letter := rest[:1]
		rest = rest[1:]
		switch {
		case takesValue(bench, letter) && rest != "":
			return append(options, "-"+letter, rest)
		case !hasOption(bench, letter):
			return []string{arg}
		}
		options = append(options, "-"+letter)
	}
	return options
}

// hasOption reports whether c, or a command below it, has an option of a name.
func hasOption(c *cli.Command, name string) bool {
	for _, f := range c.Flags {
		if slices.Contains(f.Names(), name) {
			return true
		}
	}
	return slices.ContainsFunc(c.Subcommands, func(sub *cli.Command) bool { return hasOption(sub, name) })
}
