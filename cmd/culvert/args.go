package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// reorder moves options behind the command they belong to and before its arguments, because the flag package stops at
// the first argument: "peer add NAME --key K" and "-c FILE check" then work. What follows "--" is left alone. A call
// for help drops the arguments, which the library would take for topics.
func reorder(commands []*cli.Command, args []string) []string {
	if len(args) == 0 || args[len(args)-1] == "--generate-bash-completion" { // the word being completed must stay last
		return args
	}
	command := &cli.Command{Subcommands: commands} // the deepest named so far
	out := []string{args[0]}
	var options, operands []string
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			operands = append(operands, args[i:]...)
			break
		}
		if len(arg) > 1 && arg[0] == '-' {
			options = append(options, arg)
			if takesValue(command, strings.TrimLeft(arg, "-")) && i+1 < len(args) {
				i++
				options = append(options, args[i])
			}
			continue
		}
		if sub := command.Command(arg); sub != nil && len(operands) == 0 {
			command, out = sub, append(out, arg)
		} else {
			operands = append(operands, arg)
		}
	}
	if slices.Contains(options, "--help") || slices.Contains(options, "-h") {
		return append(out, "--help")
	}
	return slices.Concat(out, options, operands)
}

// takesValue reports whether an option of c, or of any command below it, has a value after it.
func takesValue(c *cli.Command, option string) bool {
	for _, f := range c.Flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if ok && doc.TakesValue() && slices.Contains(f.Names(), option) {
			return true
		}
	}
	return slices.ContainsFunc(c.Subcommands, func(sub *cli.Command) bool { return takesValue(sub, option) })
}
